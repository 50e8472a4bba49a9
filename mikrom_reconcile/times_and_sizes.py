"""Every time, size and count that bounds something: name with unit, why, value. Nobody sets them but tests."""

from typing import Annotated

import msgspec


class Observing(msgspec.Struct, frozen=True, kw_only=True):  # what hosts run, and how long to wait for it
    deadline_s: Annotated[float, "hosts answer in milliseconds; one that has not by then counts as unreachable"] = 10.0
    completion_deadline_s: Annotated[float, "how long Tab completion waits for the names of VMs"] = 1.0
    host_share_of_deadline: Annotated[float, "the rest of a deadline is for the answer that it was missed"] = 0.9
    report_s: Annotated[float, "a host reports what it has by then: control waits two seconds longer"] = 8.0
    others_s: Annotated[float, "VMs of other projects get this when those that were asked for used up the time"] = 1.0
    begin_checks_s: Annotated[float, "no check begins later: silent guests must not make their host unreachable"] = 3.0
    silent_after_s: Annotated[float, "VMMs answer in a millisecond or two; slower ones are waited for apart"] = 0.02
    threads: Annotated[int, "VMs observed at once, not counting those that do not answer"] = 16
    max_threads: Annotated[int, "with those that do not answer, which take a thread each"] = 512
    worker_seen_s: Annotated[int, "a host whose worker was not seen for a day is not asked about"] = 86400


class Checks(msgspec.Struct, frozen=True, kw_only=True):  # health checks of guests
    try_s: Annotated[float, "one try takes no longer, whatever its time-out: its host has to report"] = 5.0
    console_bytes: Annotated[int, "how much of what a guest printed since its boot is searched"] = 1 << 20
    search_start_s: Annotated[float, "the process of a search starts in some 15 ms, under load in more"] = 1.0
    found_characters: Annotated[int, "of a console's matching text, in a report"] = 80


class Orders(msgspec.Struct, frozen=True, kw_only=True):  # one action on one host
    deadline_s: Annotated[float, "longest one action may take, graceful stop included"] = 300.0
    shutdown_grace_s: Annotated[float, "a Linux shuts down in seconds, the demo guest in milliseconds"] = 10.0
    worker_stop_grace_s: Annotated[float, "for an action under way; a gevent worker needs 4.5 s on top to stop"] = 2.0
    worker_end_s: Annotated[float, "a worker that hangs says where, and ends: supervisors kill after 15 s"] = 14.0
    task_margin_s: Annotated[float, "actions keep their own deadline; this ends only what has lost its way"] = 5.0
    attempts: Annotated[int, "of an order that fails for a reason that may pass; others are tried once"] = 3
    first_retry_s: Annotated[float, "doubled with each attempt"] = 1.0
    error_characters: Annotated[int, "of an error in a record: enough for any fault of a VMM"] = 2000
    memory_count_held: Annotated[int, "a count of memory holds so many times longer than it took (50 us a record)"] = 20


class Records(msgspec.Struct, frozen=True, kw_only=True):  # what a host remembers on disk
    record_bytes: Annotated[int, "a record has about 700 bytes; no spec can need as much as this"] = 1 << 20
    tombstone_s: Annotated[int, "it matters while an order from before the deletion may come: for hours"] = 30 * 86400
    released_address_s: Annotated[int, "no cooldown is longer than a day, as far as a host remembers"] = 86400
    removals_per_sweep: Annotated[int, "one removal in so many deletes old tombstones; without it they pile up"] = 256
    kept_tokens: Annotated[int, "a reader that lists the folder while one is added still finds the one before"] = 2
    cached_paths: Annotated[int, "more VMs than a host has; joining a path takes as long as opening its file"] = 4096


class Supervision(msgspec.Struct, frozen=True, kw_only=True):  # restarting VMMs that ended by themselves
    starts_at_once: Annotated[int, "starts mostly wait in the kernel, and more of them only wait longer"] = 32
    rescan_s: Annotated[float, "until VMs are found that another process started"] = 5.0
    retry_s: Annotated[float, "what a start lacked (memory, descriptors) is seldom there a moment later"] = 1.0
    start_s: Annotated[float, "two hundred starts at once on two processors take one second"] = 10.0


class VMMs(msgspec.Struct, frozen=True, kw_only=True):  # the processes that run guests
    boot_s: Annotated[float, "a VMM that has not booted its guest by then never will; usual are 12 ms"] = 5.0
    answer_s: Annotated[float, "a VMM answers within a millisecond or two, even among a thousand"] = 1.0
    answer_bytes: Annotated[int, "the configuration of a VM with many drives has some kilobytes"] = 1 << 18
    full_queue_s: Annotated[float, "pause before connecting again to a socket whose queue is full"] = 0.002
    poll_s: Annotated[float, "an API socket is there 1.2 ms after its spawn, a lock free as fast after a death"] = 0.001
    kill_s: Annotated[float, "a killed guest of many GiB takes seconds to be torn down"] = 30.0
    leave_s: Annotated[float, "Firecracker takes some 15 ms to end when asked"] = 1.0
    death_s: Annotated[float, "from closing its API socket to its death a VMM takes milliseconds"] = 0.1
    version_s: Annotated[float, "`firecracker --version` takes milliseconds"] = 5.0
    probe_s: Annotated[float, "under QEMU with KVM the demo guest boots and ends in 0.1 s"] = 5.0
    jailer_s: Annotated[float, "a jailer copies a program of 3 MB and makes a few nodes: some milliseconds"] = 10.0
    rate_refill_ms: Annotated[int, "a bucket for a second: what comes in bursts may use all of it at once"] = 1000
    cgroup_busy_s: Annotated[float, "a cgroup is busy for moments after the last process in it died"] = 2.0
    cgroup_overhead_mib: Annotated[int, "what Firecracker uses besides guest memory and page tables"] = 32
    cgroup_threads: Annotated[int, "threads of a VMM in addition to one per vCPU"] = 16
    socket_path_bytes: Annotated[int, "the room in sockaddr_un, without the final zero"] = 107
    console_bytes: Annotated[int, "what is kept of a console at least: some ten thousand lines"] = 1 << 20
    log_bytes: Annotated[int, "what is kept of a VMM's log and of its metrics: a line of 4 kB a minute"] = 256 << 10
    metrics_interval_ms: Annotated[int, "Firecracker writes metrics once a minute, and when it ends"] = 58_000
    metrics_tail_bytes: Annotated[int, "some lines of 4 kB, to see how a guest ended"] = 32 << 10
    log_tail_bytes: Annotated[int, "what QEMU said last, to see how a guest ended"] = 8 << 10
    exit_status_tail_bytes: Annotated[int, "of a console, for what the init of a container image said last"] = 4096
    error_tail_bytes: Annotated[int, "of a VMM's log in an error message"] = 500
    suspended_file_bytes: Annotated[int, "the file that says what a suspended VM's memory fits"] = 1 << 20
    resume_tries: Annotated[int, "so often may the host lack something before a suspended VM boots anew instead"] = 3
    process_file_bytes: Annotated[int, "the file that names a VMM's process"] = 4096
    kernel_head_bytes: Annotated[int, "of a kernel, which say what kind it is"] = 1024
    moved_search_s: Annotated[float, "how long no VMM of a moved state folder stands; a search takes ms"] = 5.0
    pid_file_bytes: Annotated[int, "the jailer's file with a pid"] = 20
    qemu_translated_mib: Annotated[int, "of translated code; left to itself QEMU takes up to 1 GiB"] = 64
    qemu_overhead_mib: Annotated[int, "besides guest memory; measured: 42 demo guest, 107 emulated Linux"] = 64
    qemu_metadata_bytes: Annotated[int, "Firecracker's metadata service takes 50 KiB"] = 64 << 10
    simulated_console_characters: Annotated[int, "what is kept of a simulated console over many boots"] = 16 << 10


class Images(msgspec.Struct, frozen=True, kw_only=True):  # files that VMs boot from, and other resources of a host
    max_mib: Annotated[int, "the largest file that a host takes unless MIKROM_IMAGE_MAX_MIB says otherwise"] = 65536
    piece_bytes: Annotated[int, "takes a millisecond or two to hash and to write"] = 1 << 20
    copied_piece_bytes: Annotated[int, "of a disk that is copied; other greenlets run in between"] = 4 << 20
    idle_s: Annotated[float, "a server silent for so long has stopped; a slow one is read until the deadline"] = 20.0
    lock_poll_s: Annotated[float, "pause before checking again for an image that another process fetches"] = 0.05
    kept_s: Annotated[float, "for a file that no VM uses: the next run of a pipeline may want it again"] = 24 * 3600.0
    sweep_interval_s: Annotated[float, "between two sweeps of one process; the first is due at once"] = 3600.0
    sweep_wait_s: Annotated[float, "how long a sweep waits for a process that creates or removes a bridge"] = 10.0
    secret_bytes: Annotated[int, "the largest secret; all metadata of a VM has 50 KiB"] = 32 << 10


class ContainerImages(msgspec.Struct, frozen=True, kw_only=True):  # container images, and root disks made of them
    document_bytes: Annotated[int, "of a manifest or a configuration: registries take 4 MiB"] = 4 << 20
    token_bytes: Annotated[int, "of what a registry's token service answers"] = 1 << 20
    layers: Annotated[int, "Docker makes 127 at most"] = 256
    entries: Annotated[int, "of all layers together; the largest images known have some 500,000"] = 2_000_000
    header_bytes: Annotated[int, "of one entry's headers: names, attributes, a sparse file's holes"] = 1 << 20
    depth: Annotated[int, "of folders; the deepest trees of packages have some 60"] = 200
    path_bytes: Annotated[int, "of one name with its folders, as the kernel has it"] = 4095
    accounts_bytes: Annotated[int, "of an image's /etc/passwd, in which its USER is looked up"] = 1 << 20
    archive_members: Annotated[int, "of a file of `docker save`: three for each layer"] = 10_000
    kernel_bytes: Annotated[int, "of an unpacked kernel; Debian's has 40 MiB, one for debugging 400"] = 512 << 20
    tar_buffer_bytes: Annotated[int, "of a tar that is read at once"] = 64 << 10
    run_file_bytes: Annotated[int, "of what an image runs, with its environment: what the init has room for"] = 1 << 20
    run_file_lines: Annotated[int, "words and variables in it, for which the init has room"] = 4096
    last_time_s: Annotated[int, "the last second that ext4 can tell"] = (1 << 34) - 1
    mkfs_s: Annotated[float, "mke2fs writes some 500 MiB a second"] = 600.0
    spare_share: Annotated[float, "of what a disk needs: room for what the guest writes"] = 0.2
    spare_inodes: Annotated[int, "beside what the tree has and a share"] = 1024


class Networks(msgspec.Struct, frozen=True, kw_only=True):  # bridges, taps and address translation of a host
    lock_poll_s: Annotated[float, "until a bridge that another process makes is tried again"] = 0.005
    netlink_answer_s: Annotated[float, "the kernel answers in microseconds"] = 5.0
    netlink_answer_bytes: Annotated[int, "of one datagram from the kernel"] = 1 << 16
    mtu: Annotated[int, "of a tap whose interface has none, as Linux makes it"] = 1500
    nft_s: Annotated[float, "nft takes milliseconds"] = 10.0
    nft_retry_s: Annotated[float, "pause before nft is asked again after it failed"] = 1.0


class Broker(msgspec.Struct, frozen=True, kw_only=True):  # messages between control and hosts
    heartbeat_interval_s: Annotated[float, "workers and waiting callers renew their keys this often"] = 5.0
    heartbeat_ttl_s: Annotated[float, "three missed heartbeats mean dead, by the server's clock"] = 15.0
    result_ttl_s: Annotated[int, "results that are not fetched expire, as Celery's do"] = 3600
    connect_s: Annotated[float, "a host name may have two addresses, and both together have to stay below 3 s"] = 1.0
    ping_s: Annotated[float, "for the first answer of a server that took the connection"] = 1.5
    read_s: Annotated[float, "longer than any blocking read asks the server to wait"] = 5.0
    health_check_s: Annotated[float, "of idle connections: one that is half open is noticed within twice as long"] = 5.0
    reconnect_s: Annotated[float, "between two tries of what cannot reach the broker"] = 2.0
    message_bytes: Annotated[int, "before compression: some 100,000 VM rows, or as large a tree of specs"] = 64 << 20
    compress_from_bytes: Annotated[int, "smaller messages gain nothing"] = 4096
    key_file_bytes: Annotated[int, "a PEM file with an Ed25519 key has about 120 bytes"] = 4096
    event_interval_s: Annotated[float, "events are sent together; people do not notice the delay"] = 0.05
    events_per_message: Annotated[int, "sent at once when so many wait"] = 200
    reply_interval_s: Annotated[float, "between two messages; the first does not wait"] = 0.02
    reply_awaited_s: Annotated[float, "how long a caller is believed to be still waiting"] = 1.0
    reply_retry_s: Annotated[float, "until a broker that is away is tried again"] = 1.0
    reply_kept_s: Annotated[float, "a broker that took nothing while its keys expired has dropped the call, too"] = 20.0
    replies_waiting: Annotated[int, "when the broker is away: more than can be under way"] = 10_000
    host_event_retry_s: Annotated[float, "until the broker is tried again with what a host did by itself"] = 5.0
    host_events_waiting: Annotated[int, "when the broker is away; later ones are only in the log"] = 1000
    console_answer_s: Annotated[float, "a host sends a console in milliseconds"] = 10.0
    console_bytes: Annotated[int, "more of a console than this is fetched on the host itself"] = 1 << 20
    worker_check_s: Annotated[float, "interval of checks whether a host's worker is alive"] = 1.0
    syncs_at_once: Annotated[int, "threads that wait for a disk; one more wait is a greenlet"] = 16
    cleanup_interval_s: Annotated[float, "between two clean-ups of what dead workers left in the broker"] = 3600.0
    trace_flush_s: Annotated[float, "for the last spans of a worker that ends: a collector may be silent"] = 1.0


class Webhooks(msgspec.Struct, frozen=True, kw_only=True):  # what scheduled runs tell people
    deadline_s: Annotated[float, "each, retries included; the next run tries again"] = 20.0
    pause_s: Annotated[float, "between tries, as for a proxy that is started again"] = 3.0
    lines: Annotated[int, "in a chat; nobody reads more"] = 20
    status_characters: Annotated[int, "GitHub takes 140 of a commit status"] = 140


class Runs(msgspec.Struct, frozen=True, kw_only=True):  # one plan or apply, and what is kept of it
    lease_ttl_s: Annotated[float, "how long a dead run keeps others waiting"] = 15.0
    lease_retry_s: Annotated[float, "interval at which a waiting run tries to take the lease"] = 0.5
    booting_poll_s: Annotated[float, "interval at which booting VMs are observed again"] = 1.0
    save_interval_s: Annotated[float, "or ten times what saving took, if that is longer"] = 1.0
    plan_wait_s: Annotated[float, "large fleets take seconds; the rest waits for a free control worker"] = 120.0
    report_wait_s: Annotated[float, "past its deadline a run observes for the last time and reports"] = 30.0
    caller_check_s: Annotated[float, "interval of checks whether the caller still waits"] = 1.0
    beat_margin_s: Annotated[float, "a scheduled run's key has to be gone when the same Beat comes again"] = 0.2
    unfinished_kept_s: Annotated[int, "a run that failed before it could report is shown for a day"] = 86400
    progress_interval_s: Annotated[float, "interval of progress reports; people do not read faster"] = 1.0
    policy_s: Annotated[float, "what a policy command has to judge a plan; conftest takes less than a second"] = 30.0
    policy_reason_bytes: Annotated[int, "of what it says against a plan; the rest is thrown away"] = 1000
    approval_s: Annotated[float, "how long an approval holds: who looked at a plan did so lately"] = 86400.0
    approvals: Annotated[int, "of one plan that are looked at"] = 32
    ssh_keygen_s: Annotated[float, "it proves a signature in some 10 ms"] = 10.0
    kept: Annotated[int, "no store keeps more runs"] = 10_000
    kept_per_host: Annotated[int, "different things that a host did by itself"] = 100
    record_bytes: Annotated[int, "of one run: some 100,000 actions"] = 64 << 20
    revisions: Annotated[int, "of one project: months of what people change"] = 100
    revisions_bytes: Annotated[int, "of their specs, compressed: 10,000 documents take about 300 KiB"] = 32 << 20
    gc_objects: Annotated[int, "between collections: specs stay, and looking at them costs a fifth"] = 2_000_000


class Services(msgspec.Struct, frozen=True, kw_only=True):  # workers, and what `mikrom up` starts
    host_slots: Annotated[int, "actions and observations at once in a host worker; nearly all of them wait"] = 100
    control_slots: Annotated[int, "runs at once in a control worker: they wait for hosts, planning has one core"] = 8
    starting_s: Annotated[float, "how long a command waits for a `mikrom up` that is starting"] = 10.0
    redis_start_s: Annotated[float, "a private Redis answers within milliseconds"] = 5.0
    stop_s: Annotated[float, "a gevent worker takes 4.5 s to end even when idle, and 10 s is the most for all"] = 7.0
    poll_s: Annotated[float, "interval of checks of the services"] = 0.1
    redis_mib: Annotated[int, "a few messages of the largest allowed size and thousands of usual ones"] = 512
    restart_s: Annotated[float, "from the end of a service to its next start"] = 1.0
    starts: Annotated[int, "of a service in one `mikrom up`; what has ended so often ends for a reason that stays"] = 5
    log_tail_bytes: Annotated[int, "of the log of a service that ended, to show its last line"] = 4096


class Chaos(msgspec.Struct, frozen=True, kw_only=True):  # a round of `mikrom chaos`
    tick_s: Annotated[float, "a scheduled run of five VMs takes less than a second"] = 2.0
    ticks: Annotated[int, "who died with a lease keeps others waiting for 15 s, half-open connections for a minute"] = (
        60
    )
    vms: Annotated[int, "at most; each takes some 6 MiB"] = 5
    faults: Annotated[int, "at most in one round: with more, one hides what another does"] = 3
    fault_s: Annotated[float, "the longest that one lasts: of what outlives leases there are other tests"] = 6.0
    disk_mib: Annotated[int, "of the state folder, which a fault has to fill within a moment"] = 64


class Doctor(msgspec.Struct, frozen=True, kw_only=True):  # when `mikrom doctor` says that room is scarce
    scarce_disk_bytes: Annotated[int, "less free space is worth a note"] = 1 << 30
    least_disk_bytes: Annotated[int, "with less, the next records and consoles may not find room"] = 64 << 20
    vms: Annotated[int, "less room than for so many more small VMs is worth a note"] = 100
    worker_descriptors: Annotated[int, "what a host worker needs in addition to one per VMM"] = 256
    password_characters: Annotated[int, "shorter ones can be guessed"] = 12


class Specs(msgspec.Struct, frozen=True, kw_only=True):  # files, documents, and how much of mistakes is told
    file_bytes: Annotated[int, "10,000 documents take about 6 MiB; more is a mistake or an attack"] = 10 << 20
    tree_bytes: Annotated[int, "100,000 documents take about 60 MiB"] = 100 << 20
    head_bytes: Annotated[int, "how much of a file is read to see whether it looks like a spec"] = 4096
    git_status_s: Annotated[float, "it takes milliseconds; a slower repository goes without a commit's name"] = 2.0
    git_fetch_s: Annotated[float, "for everything together: specs are small, and a run waits for them"] = 30.0
    git_file_bytes: Annotated[int, "the largest that a fetch writes, which is the pack; specs take some MiB"] = 1 << 30
    keys_bytes: Annotated[int, "of keys of those who sign commits; a keyring of hundreds has 2 MiB"] = 16 << 20
    misnamed_bytes: Annotated[int, "larger files are no specs under another name"] = 1 << 20
    kept_bytes: Annotated[int, "of the last good tree; more than the largest one takes"] = 256 << 20
    name_characters: Annotated[int, "of a VM's name: it is part of socket paths, which have at most 107 bytes"] = 48
    max_problems: Annotated[int, "reported at once; people do not read more, and an attack must not cost more"] = 500
    max_documents: Annotated[int, "in one file"] = 100_000
    windows: Annotated[int, "in a row that close a budget, as half hours do a day; after more no end is in sight"] = 48
    max_brackets: Annotated[int, "for the quick parser, whose time grows with depth times length"] = 250
    max_depth: Annotated[int, "of nesting; the deepest legal document has 8"] = 32
    max_values: Annotated[int, "in one document, with aliases at each use: what stops an alias bomb"] = 200_000
    max_int: Annotated[int, "whole numbers stay below: every program can hold them"] = 10**18
    exact_digits: Annotated[int, "parsers differ in what they make of a number with more"] = 17
    max_variable_depth: Annotated[int, "how far a variable may lead to another; a circle is found here"] = 8
    lookup_characters: Annotated[int, "for one VM: variables that multiply one another outgrow any memory"] = 1 << 18
    pattern_range: Annotated[int, "names that one range of a pattern stands for"] = 10_000
    last_port: Annotated[int, "of TCP and UDP"] = 65535
    vcpus: Annotated[int, "Firecracker's own limit"] = 32
    least_mem_mib: Annotated[int, "the demo guest is linked at 1 MiB"] = 2
    boot_args_bytes: Annotated[int, "a kernel command line has 2 KiB with its final zero"] = 2047
    boot_args_device_bytes: Annotated[int, "Firecracker's virtio_mmio.device=…; twice for a root disk"] = 36
    boot_args_address_bytes: Annotated[int, "of the first interface, in addition to the longest name"] = 120
    metadata_bytes: Annotated[int, "Firecracker takes 51,200 in one request; its host adds something"] = 50_000
    excerpt_characters: Annotated[int, "of a line with a mistake: what a terminal has room for"] = 110
    excerpt_characters_before: Annotated[int, "of these before the mistake"] = 50
    shown_characters: Annotated[int, "of a value inside a message"] = 60
    hinted_words: Annotated[int, "listed in a hint"] = 12
    compared_words: Annotated[int, "that a misspelt one is compared with, since comparing takes microseconds"] = 1000
    named_characters: Annotated[int, "unusual characters that a message names"] = 3
    named_hosts: Annotated[int, "per reason; a thousand names do not help"] = 5
    named_vms: Annotated[int, "per reason, followed by how many more there are"] = 3


class Output(msgspec.Struct, frozen=True, kw_only=True):  # what is shown to people
    section_lines: Annotated[int, "people do not read more; the rest is counted, and `-o json` has all"] = 100
    value_characters: Annotated[int, "of a value that is not shown in full"] = 60
    markdown_characters: Annotated[int, "the longest comment that GitHub takes"] = 65536
    open_groups: Annotated[int, "with more, the groups of a page begin closed: it is an overview first"] = 12
    page_refresh_s: Annotated[float, "people look at it for longer"] = 10.0
    page_interval_s: Annotated[float, "or ten times what making it took: runs need the processor, too"] = 5.0
    page_runs: Annotated[int, "the last ones on the page of the status; `mikrom history` has them all"] = 20
    page_actions: Annotated[int, "of each run there, what failed first"] = 20
    page_consoles: Annotated[int, "each is one more question to a host"] = 3
    page_console_bytes: Annotated[int, "some twenty lines"] = 2048
    described_actions: Annotated[int, "enough to see what went on lately; `mikrom events` has them all"] = 50
    follow_poll_s: Annotated[float, "people do not notice a shorter wait, nor a broker two messages a second"] = 0.5
    follow_part_bytes: Annotated[int, "a guest that writes faster than this is shown with gaps"] = 256 << 10
    follow_line_bytes: Annotated[int, "a line that has not ended by then is shown as far as it goes"] = 4096
    logs_bytes: Annotated[int, "of a console: some thousand lines, one message that a broker takes lightly"] = 256 << 10


class Rehearsal(msgspec.Struct, frozen=True, kw_only=True):  # what `mikrom simulate` makes up
    failing_starts: Annotated[float, "of those of a host, where starts are to fail"] = 0.2
    faults_s: Annotated[float, "each host is dark once, from some moment within that time, for as long at most"] = 300.0
    up_before_s: Annotated[float, "VMs that run have done so for longer than any rollout wants to see"] = 1e6
    interval_s: Annotated[float, "between runs, as between Beat's"] = 60.0
    runs: Annotated[int, "a fleet of 10,000 VMs changes in 100 batches of some runs each"] = 10_000
    idle_runs: Annotated[int, "in a row, after which nothing is done any more"] = 3


OBSERVING = Observing()
CHECKS = Checks()
ORDERS = Orders()
RECORDS = Records()
SUPERVISION = Supervision()
VMMS = VMMs()
IMAGES = Images()
CONTAINER_IMAGES = ContainerImages()
NETWORKS = Networks()
BROKER = Broker()
RUNS = Runs()
WEBHOOKS = Webhooks()
SERVICES = Services()
CHAOS = Chaos()
DOCTOR = Doctor()
SPECS = Specs()
OUTPUT = Output()
REHEARSAL = Rehearsal()
