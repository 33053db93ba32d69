"""Namespaces of Linux: a file system, processes and network that hold nothing of the machine but what calls need.

Needs no privilege, only a kernel (5.14 or newer) that lets users make namespaces. Mounts, processes and network belong
to a user namespace that no call is in, so a call has no power over them whatever it becomes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from .linux import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    PR_SET_DUMPABLE,
    call,
    drop_capabilities,
    make_read_only,
    mount,
    prctl,
)

NOBODY = 65534
"""User and group that own nothing."""
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"),
)
"""What programs and shared libraries need; a machine has some of it."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""Those that do no harm."""
_WORK = "/sandbox"
_MAX_FILES = 4096
"""Files and folders of a call."""


def enter_server(folder: str, readable: Sequence[str], hidden: Sequence[str]) -> int:
    """Moves the process into namespaces of its own; its next child is the first process in its process namespace.

    Args:
        folder: empty; the new root is built on it.
        readable: files and folders that stay visible, read-only, besides those of the system.
        hidden: folders that are empty even where they lie in visible ones.

    Returns:
        Descriptor of the machine's ``/proc``, which no path leads to any more; for the server's eyes alone.

    Raises:
        OSError: if the machine refuses; the process is then good for nothing.
    """
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    is_root = is_root_of_machine()
    try:
        if os.geteuid() != 0:
            raise PermissionError("only root may mount without a user namespace")
        # As root while the tree is built: its paths may lead through folders that only root may enter.
        call("unshare", CLONE_NEWNS)
    except PermissionError:
        if is_root:
            become_nobody()
        _enter(CLONE_NEWUSER | CLONE_NEWNS, proc)
    _change_root(folder, [*SYSTEM, *DEVICES, *readable], hidden)
    if is_root:
        become_nobody()
    _enter(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS, proc)
    return proc


def is_root_of_machine() -> bool:
    """Whether the process is root, and not only called so within a user namespace."""
    with open("/proc/self/uid_map") as lines:
        return os.geteuid() == 0 and any(line.split()[:2] == ["0", "0"] for line in lines)


def become_nobody() -> None:
    """Turns root into a user who owns nothing; limits on the number of processes spare root."""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        raise OSError(error.errno, f"setresuid: {error.strerror}") from error
    # Who changes user loses the right to write the maps of its own namespace.
    prctl(PR_SET_DUMPABLE, 1)


def fork_call(own_processes: int) -> int:
    """Forks a child that is the first process of a new process namespace: nothing in it outlives that child.

    Args:
        own_processes: descriptor of the caller's process namespace.

    Raises:
        OSError: if the machine has no room for another process.
    """
    call("unshare", CLONE_NEWPID)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            # Only from here may another process namespace be made.
            call("setns", own_processes, CLONE_NEWPID)
    return pid


def enter_call(disk_mb: int) -> None:
    """Gives the process an empty working folder and takes its power over the namespaces that it is in."""
    call("unshare", CLONE_NEWNS | CLONE_NEWIPC)
    mount("tmpfs", _WORK, "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_mb}m,nr_inodes={_MAX_FILES},mode=700")
    os.chdir(_WORK)
    # A user namespace of its own counts its own processes; left unmapped, it has no users.
    call("unshare", CLONE_NEWUSER)
    drop_capabilities()


def _enter(flags: int, proc: int) -> None:
    """Moves the process into a new user namespace, and others that belong to it, as who it is now."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        except OSError as error:
            raise OSError(error.errno, f"{name}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def _change_root(folder: str, visible: Sequence[str], hidden: Sequence[str]) -> None:
    """Makes a read-only tree of `visible` without `hidden` the root, and drops the old one."""
    mount("none", "/", "none", MS_REC | MS_PRIVATE)
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in visible:
        if os.path.lexists(path) and not os.path.lexists(folder + path):
            _show(path, folder + path)
    for path in hidden:
        if os.path.isdir(folder + path):
            mount("tmpfs", folder + path, "tmpfs", MS_NOSUID | MS_NODEV, "size=4k,mode=755")
    os.mkdir(folder + _WORK)
    # Packages may lie in the one; the C library keeps named semaphores in the other.
    for link in ("/tmp", "/dev/shm"):
        if not os.path.lexists(folder + link):
            os.symlink(_WORK, folder + link)
    make_read_only(folder)
    os.chdir(folder)
    # Both arguments alike: the old root lies on top of the new one until it is taken off.
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def _show(path: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(path, target, "none", MS_BIND | MS_REC)
