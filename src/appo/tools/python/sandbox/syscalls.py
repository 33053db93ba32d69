"""The system calls that code may make, by name, with their numbers on each architecture; every other is refused."""

from __future__ import annotations

LAST_KNOWN = 466
"""Highest number that was looked at; the kernel answers that it does not know those above, as an older one would."""

_FILES = {
    "x86_64": {
        **{"read": 0, "write": 1, "readv": 19, "writev": 20, "pread64": 17, "pwrite64": 18, "preadv": 295},
        **{"pwritev": 296, "preadv2": 327, "pwritev2": 328, "open": 2, "creat": 85, "openat": 257, "close": 3},
        **{"close_range": 436},
        **{
            "close_range": 436,
            "lseek": 8,
            "dup": 32,
            "dup2": 33,
            "dup3": 292,
            "pipe": 22,
            "pipe2": 293,
            "sendfile": 40,
        },
        **{"copy_file_range": 326, "stat": 4, "fstat": 5, "lstat": 6, "newfstatat": 262, "statx": 332, "access": 21},
        **{"faccessat": 269, "faccessat2": 439, "readlink": 89, "readlinkat": 267, "statfs": 137, "fstatfs": 138},
        **{"getdents": 78, "getdents64": 217, "getcwd": 79, "chdir": 80, "fchdir": 81, "umask": 95, "mkdir": 83},
        **{"mkdirat": 258, "rmdir": 84, "unlink": 87, "unlinkat": 263, "rename": 82, "renameat": 264, "renameat2": 316},
        **{"link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "truncate": 76, "ftruncate": 77},
        **{"fallocate": 285, "fsync": 74, "fdatasync": 75, "fadvise64": 221, "poll": 7, "ppoll": 271, "select": 23},
        **{"pselect6": 270, "epoll_create": 213, "epoll_create1": 291, "epoll_ctl": 233, "epoll_wait": 232},
        **{"epoll_pwait": 281, "epoll_pwait2": 441},
    },
    "aarch64": {
        **{"read": 63, "write": 64, "readv": 65, "writev": 66, "pread64": 67, "pwrite64": 68, "preadv": 69},
        **{"pwritev": 70, "preadv2": 286, "pwritev2": 287, "openat": 56, "close": 57, "close_range": 436, "lseek": 62},
        **{"dup": 23, "dup3": 24, "pipe2": 59, "sendfile": 71, "copy_file_range": 285, "fstat": 80, "newfstatat": 79},
        **{"statx": 291, "faccessat": 48, "faccessat2": 439, "readlinkat": 78, "statfs": 43, "fstatfs": 44},
        **{"getdents64": 61, "getcwd": 17, "chdir": 49, "fchdir": 50, "umask": 166, "mkdirat": 34, "unlinkat": 35},
        **{"renameat": 38, "renameat2": 276, "linkat": 37, "symlinkat": 36, "truncate": 45, "ftruncate": 46},
        **{"fallocate": 47, "fsync": 82, "fdatasync": 83, "fadvise64": 223, "ppoll": 73, "pselect6": 72},
        **{"epoll_create1": 20, "epoll_ctl": 21, "epoll_pwait": 22, "epoll_pwait2": 441},
    },
}
_PROCESSES = {
    "x86_64": {
        **{"brk": 12, "munmap": 11, "mprotect": 10, "mremap": 25, "msync": 26, "set_robust_list": 273, "rseq": 334},
        **{"set_tid_address": 218, "restart_syscall": 219, "exit": 60, "exit_group": 231, "execve": 59, "wait4": 61},
        **{"waitid": 247, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127},
        **{"rt_sigsuspend": 130, "rt_sigtimedwait": 128, "sigaltstack": 131, "pause": 34, "alarm": 37, "getitimer": 36},
        **{"setitimer": 38, "nanosleep": 35, "clock_nanosleep": 230, "clock_gettime": 228, "clock_getres": 229},
        **{"gettimeofday": 96, "time": 201, "times": 100, "getrusage": 98, "sysinfo": 99, "uname": 63, "getpid": 39},
        **{"getppid": 110, "gettid": 186, "getpgrp": 111, "getpgid": 121, "getsid": 124, "getuid": 102, "geteuid": 107},
        **{"getgid": 104, "getegid": 108, "getresuid": 118, "getresgid": 120, "getgroups": 115, "capget": 125},
        **{"sched_yield": 24, "sched_getaffinity": 204, "sched_getscheduler": 145, "sched_getparam": 143},
        **{"sched_get_priority_max": 146, "sched_get_priority_min": 147, "getcpu": 309, "getrlimit": 97},
        **{"setrlimit": 160, "getrandom": 318},
    },
    "aarch64": {
        **{"brk": 214, "munmap": 215, "mprotect": 226, "mremap": 216, "msync": 227, "set_robust_list": 99, "rseq": 293},
        **{"set_tid_address": 96, "restart_syscall": 128, "exit": 93, "exit_group": 94, "execve": 221, "wait4": 260},
        **{"waitid": 95, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "rt_sigpending": 136},
        **{"rt_sigsuspend": 133, "rt_sigtimedwait": 137, "sigaltstack": 132, "getitimer": 102, "setitimer": 103},
        **{"nanosleep": 101, "clock_nanosleep": 115, "clock_gettime": 113, "clock_getres": 114, "gettimeofday": 169},
        **{"times": 153, "getrusage": 165, "sysinfo": 179, "uname": 160, "getpid": 172, "getppid": 173, "gettid": 178},
        **{"getpgid": 155, "getsid": 156, "getuid": 174, "geteuid": 175, "getgid": 176, "getegid": 177},
        **{"getresuid": 148, "getresgid": 150, "getgroups": 158, "capget": 90, "sched_yield": 124},
        **{"sched_getaffinity": 123, "sched_getscheduler": 120, "sched_getparam": 121, "sched_get_priority_max": 125},
        **{"sched_get_priority_min": 126, "getcpu": 168, "getrlimit": 163, "setrlimit": 164, "getrandom": 278},
    },
}
_PAIRS_OF_SOCKETS = {
    "x86_64": {"getsockname": 51, "getpeername": 52, "getsockopt": 55, "sendto": 44, "recvfrom": 45, "shutdown": 48},
    "aarch64": {
        **{"getsockname": 204, "getpeername": 205, "getsockopt": 209, "sendto": 206, "recvfrom": 207, "shutdown": 210},
    },
}
"""Not `sendmsg` and `recvmsg`, which hand descriptors on, nor what gives a socket a name, an address or more memory."""
ALLOWED = {name: _FILES[name] | _PROCESSES[name] | _PAIRS_OF_SOCKETS[name] for name in ("x86_64", "aarch64")}
"""What every call may make, whatever the arguments."""

CHECKED = {
    "x86_64": {
        **{"fcntl": 72, "ioctl": 16, "mmap": 9, "madvise": 28, "futex": 202, "prctl": 157, "arch_prctl": 158},
        **{"prlimit64": 302, "getpriority": 140, "socketpair": 53, "mknod": 133, "mknodat": 259},
    },
    "aarch64": {
        **{"fcntl": 25, "ioctl": 29, "mmap": 222, "madvise": 233, "futex": 98, "prctl": 167},
        **{"prlimit64": 261, "getpriority": 141, "socketpair": 199, "mknodat": 33},
    },
}
"""What every call may make with some arguments."""

OWN_WORLD = {
    "x86_64": {
        **{"kill": 62, "tkill": 200, "tgkill": 234, "setpgid": 109, "setsid": 112},
        **{"chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "utime": 132, "utimes": 235},
        **{"utimensat": 280, "futimesat": 261, "getxattr": 191, "lgetxattr": 192, "fgetxattr": 193, "listxattr": 194},
        **{"llistxattr": 195, "flistxattr": 196},
    },
    "aarch64": {
        **{"kill": 129, "tkill": 130, "tgkill": 131, "setpgid": 154, "setsid": 157},
        **{"fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "utimensat": 88},
        **{"getxattr": 8, "lgetxattr": 9, "fgetxattr": 10, "listxattr": 11, "llistxattr": 12, "flistxattr": 13},
    },
}
"""What only a call in namespaces of its own may make: elsewhere it would reach other processes, or files that are not
its own and that Landlock does not guard against it."""

CLONE = {"x86_64": 56, "aarch64": 220}
FORKS = {"x86_64": (57, 58), "aarch64": ()}
CLONE3 = 435
