"""Attacks by calls of the kernel that no program of a policy needs, or with arguments that none needs."""

from __future__ import annotations

import os

from appo.tools.python.attacks.attack import Attack
from appo.tools.python.sandbox.syscalls import CHECKED, CLONE, LAST_KNOWN

REFUSED = {
    "x86_64": {
        **{"socket": 41, "bind": 49, "connect": 42, "listen": 50, "accept": 43, "accept4": 288, "setsockopt": 54},
        **{"sendmsg": 46, "recvmsg": 47, "sendmmsg": 307, "recvmmsg": 299, "shmget": 29, "semget": 64, "msgget": 68},
        **{"mq_open": 240, "memfd_create": 319, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311},
        **{"kcmp": 312, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308},
        **{"add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
        **{"open_by_handle_at": 304, "name_to_handle_at": 303, "inotify_init": 253, "inotify_init1": 294},
        **{"fanotify_init": 300, "io_setup": 206, "eventfd2": 290, "timerfd_create": 283, "timer_create": 222},
        **{"signalfd4": 289, "flock": 73, "setpriority": 141, "sched_setscheduler": 144, "sched_setparam": 142},
        **{"sched_setattr": 314, "sched_setaffinity": 203, "ioprio_set": 251, "syslog": 103, "modify_ldt": 154},
        **{"personality": 135, "seccomp": 317, "execveat": 322, "vmsplice": 278, "splice": 275, "tee": 276},
        **{"sync": 162, "setxattr": 188, "chown": 92, "mlock": 149, "mincore": 27, "rt_sigqueueinfo": 129},
        **{"capset": 126, "setuid": 105, "quotactl": 179, "init_module": 175, "reboot": 169, "kexec_load": 246},
    },
    "aarch64": {
        **{"socket": 198, "bind": 200, "connect": 203, "listen": 201, "accept": 202, "accept4": 242, "setsockopt": 208},
        **{"sendmsg": 211, "recvmsg": 212, "sendmmsg": 269, "recvmmsg": 243, "shmget": 194, "semget": 190},
        **{"msgget": 186, "mq_open": 180, "memfd_create": 279, "ptrace": 117, "process_vm_readv": 270},
        **{"process_vm_writev": 271, "kcmp": 272, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51},
        **{"unshare": 97, "setns": 268, "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280},
        **{"perf_event_open": 241, "userfaultfd": 282, "open_by_handle_at": 265, "name_to_handle_at": 264},
        **{"inotify_init1": 26, "fanotify_init": 262, "io_setup": 0, "eventfd2": 19, "timerfd_create": 85},
        **{"timer_create": 107, "signalfd4": 74, "flock": 32, "setpriority": 140, "sched_setscheduler": 119},
        **{"sched_setparam": 118, "sched_setattr": 274, "sched_setaffinity": 122, "ioprio_set": 30, "syslog": 116},
        **{"personality": 92, "seccomp": 277, "execveat": 281, "vmsplice": 75, "splice": 76, "tee": 77, "sync": 81},
        **{"setxattr": 5, "mlock": 228, "mincore": 232, "rt_sigqueueinfo": 138, "capset": 91, "setuid": 146},
        **{"quotactl": 60, "init_module": 105, "reboot": 142, "kexec_load": 104},
    },
}
"""Calls that no code may make: some of those that reach other processes, the network, the kernel's rarely used parts,
or what is counted for the user or the machine."""
REFUSED_EVERYWHERE = {
    **{"pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430},
    **{"fspick": 433, "pidfd_open": 434, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442},
    **{"landlock_create_ruleset": 444, "memfd_secret": 447, "futex_waitv": 449, "cachestat": 451, "statmount": 457},
    **{"listmount": 458},
}


def refused_calls() -> dict[str, int]:
    """Names and numbers of what is refused on this machine; none where calls are not filtered."""
    of_machine = REFUSED.get(os.uname().machine)
    return {} if of_machine is None else of_machine | REFUSED_EVERYWHERE


_ARGUMENTS: list[tuple[str, tuple[int, ...]]] = [
    *[("fcntl", (0, command)) for command in (5, 6, 7, 8, 9, 10, 11, 15, 16, 36, 37, 38, 1024, 1026, 1031, 1033)],
    # FIOASYNC, FIOSETOWN, TIOCSTI, TIOCLINUX, BLKROSET
    *[("ioctl", (0, request)) for request in (0x5452, 0x8901, 0x5412, 0x541C, 0x125D)],
    # Locked and huge pages; pages to be merged with those of others; waiting with priorities.
    ("mmap", (0, 4096, 3, 0x2022, 0xFFFF_FFFF, 0)),
    ("mmap", (0, 2**21, 3, 0x40022, 0xFFFF_FFFF, 0)),
    *[("madvise", (0, 4096, advice)) for advice in (12, 21, 100)],
    *[("futex", (0, operation)) for operation in (6, 7, 8, 11, 12, 13, 6 | 128)],
    # Death signal, dumpability, filter, no new rights, subreaper, memory, tracer, merged memory
    *[("prctl", (option,)) for option in (1, 4, 22, 38, 36, 35, 0x59616D61, 67)],
    ("prlimit64", (1, 7)),
    ("getpriority", (2, 0)),
    # Families and kinds of sockets other than pairs of streams within the machine
    *[("socketpair", (family, 1, 0, 0)) for family in (0, 2, 10, 16, 17, 29, 38, 40)],
    *[("socketpair", (1, kind, 0, 0)) for kind in (2, 3, 5, 2 | 0x8_0000)],
]
_CLONE_FLAGS = (0x80, 0x2000, 0x8000, 0x2_0000, 0x200_0000, 0x400_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000)


def _attempt(number: int, *arguments: int) -> str:
    return f"attempt(lambda: call({', '.join(map(str, (number, *arguments)))}))"


def _attacks(machine: str) -> list[Attack]:
    if machine not in CHECKED:
        return []
    attacks = [Attack(f"kernel: {name}", _attempt(number), "'EPERM'") for name, number in refused_calls().items()]
    for number in (LAST_KNOWN + 1, 1000, 0x3FFF_FFFF):
        attacks.append(Attack(f"kernel: call {number}, which is yet to come", _attempt(number), "'ENOSYS'"))
    if machine == "x86_64":
        attacks.append(Attack("kernel: a call of its second table", _attempt(0x4000_0000 | 39), "'EPERM'"))
    for name, arguments in _ARGUMENTS:
        shown = " ".join(f"{argument:#x}" for argument in arguments)
        attacks.append(Attack(f"kernel: {name} {shown}", _attempt(CHECKED[machine][name], *arguments), "'EPERM'"))
    for flag in _CLONE_FLAGS:
        flags = (flag << 32 if flag == 0x80 else flag) | 0x2_0000 | 17
        attacks.append(Attack(f"kernel: clone with {flag:#x}", _attempt(CLONE[machine], flags), "'(EPERM|EAGAIN)'"))
    return attacks


ATTACKS = _attacks(os.uname().machine)
