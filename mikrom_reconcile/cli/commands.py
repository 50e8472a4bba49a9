"""The commands by name, and the page that lists them: all that `mikrom --help` imports, for click takes too long."""

COMMANDS = {
    "init": ("Specs", "specs", "write a starter project"),
    "validate": ("Specs", "specs", "check the specs: every mistake at once, with its place"),
    "render": ("Specs", "specs", "the VMs that the specs stand for, and where each value comes from"),
    "image": ("Specs", "specs", "pin a container image: the digest of its tag, written into the specs"),
    "plan": ("Specs", "apply", "show what apply would change, and why"),
    "drift": ("Specs", "apply", "what is otherwise than it was last applied, and why"),
    "apply": ("Specs", "apply", "make it so: plan, ask, execute, verify"),
    "approve": ("Specs", "apply", "sign that a saved plan may take the data of VMs away"),
    "rollback": ("Specs", "apply", "go back to an earlier revision"),
    "promote": ("Specs", "apply", "let a rollout go on behind its canaries"),
    "abort": ("Specs", "apply", "end the rollout of a fleet where it is"),
    "accept": ("Specs", "apply", "have scheduled runs use a commit of a forced branch"),
    "freeze": ("Specs", "apply", "have all changes of a project wait"),
    "unfreeze": ("Specs", "apply", "let a project that was frozen be changed again"),
    "destroy": ("Specs", "apply", "remove what these specs own"),
    "start": ("VMs", "apply", "start VMs by name, past the specs"),
    "stop": ("VMs", "apply", "stop VMs: Ctrl-Alt-Del, then kill"),
    "pause": ("VMs", "apply", "let guests stand still, with all they have in memory"),
    "suspend": ("VMs", "apply", "write guests' memory to disk and end their VMMs"),
    "resume": ("VMs", "apply", "let paused and suspended guests go on"),
    "restart": ("VMs", "apply", "stop VMs and start them again"),
    "delete": ("VMs", "apply", "remove VMs and everything that was made for them"),
    "get": ("Look", "get", "list VMs, hosts, fleets or runs"),
    "status": ("Look", "get", "hosts, fleets and the last run on one screen"),
    "describe": ("Look", "get", "everything about a VM, a host or a fleet"),
    "explain": ("Look", "specs", "why a VM is as it is, and what happens to it"),
    "orphans": ("Look", "get", "what runs without a record or without a spec, and what is foreign"),
    "images": ("Look", "get", "the images that the specs name, and what each host has of them"),
    "logs": ("Look", "get", "the end of a VM's serial console"),
    "events": ("Look", "get", "what runs have done to which VM"),
    "history": ("Look", "get", "the runs and revisions that were kept"),
    "doctor": ("Set-up", "setup", "check this machine, and list every setting"),
    "schema": ("Set-up", "specs", "the JSON Schema of the specs, for editors"),
    "chaos": ("Set-up", "setup", "faults over microVMs of its own: is all mended?"),
    "completion": ("Set-up", "setup", "the script that completes commands and names in a shell"),
    "version": ("Set-up", "setup", "the version of mikrom"),
    "up": ("Services", "setup", "all services on this machine, with a Redis of their own"),
    "worker": ("Services", "setup", "the Celery worker of a host, or of the control side"),
    "beat": ("Services", "setup", "the clock of the scheduled runs"),
    "flower": ("Services", "setup", "the monitoring page"),
}
"""Name to: its group in the overview, the module here that holds a click command of that name, its help."""


def overview() -> str:
    """The page that `mikrom --help` shows."""
    lines = ["Usage: mikrom COMMAND [OPTION]... [ARGUMENT]...", ""]
    lines += ["Firecracker microVM fleets from YAML, made so and kept so.", ""]
    previous = None
    for name, (group, _, text) in COMMANDS.items():
        lines += [f"{group}:"] if group != previous else []
        lines.append(f"  {name:<12}{text}")
        previous = group
    lines += ["", "`mikrom COMMAND --help` tells more. Paths default to MIKROM_SPECS, then ./specs.", ""]
    return "\n".join(lines)
