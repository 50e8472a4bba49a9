"""Flower's configuration: its pages call a task by what it does. Flower runs it by itself; it can import nothing."""

from typing import Any

from flower.views import BaseHandler

tasks_columns = "name,state,received,runtime,worker,uuid"


def format_task(task: Any) -> Any:
    """The task as it is shown; `task` is a copy, and its `kwargs` are what its sender wrote about it."""
    if (task.name or "").startswith("mikrom."):
        does = task.name.removeprefix("mikrom.").removesuffix("_vm").removesuffix("_host")
        about = "" if task.kwargs == "(not shown)" else task.kwargs
        task.name = f"{does} {about or ''}".strip()
    return task


def _queues(handler: Any) -> list[str]:
    """Those of all workers that were heard of; Flower by itself shows those that were there when it started."""
    own = handler.capp.conf.task_queues[0].name
    names = (worker.partition("@") for worker in handler.application.events.state.workers)
    return sorted({own} | {f"{own}.{host}" for role, _, host in names if role == "host"})


BaseHandler.get_active_queue_names = _queues
