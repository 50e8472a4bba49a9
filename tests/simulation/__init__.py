"""The simulation: a fleet in one process, in virtual time, by one seed, with the real code between simulated ends.

    make sim SEED=4711 STEPS=100000     one seed; what fails is shrunk and said with the command that repeats it
    make sim SEEDS=1000 STEPS=1000      many

Real: planner, reconciler, stores and hosts of a fleet, orders and answers, executor, records, supervision.
Simulated: time (`clockwork.py`), Redis and Celery (`broker.py`), disks below the system calls (`disk.py`), VMMs and
power (`machine.py`). `faults.py` is what goes wrong, `judge.py` what must hold, `bugs.py` what the judge has to catch.
"""
