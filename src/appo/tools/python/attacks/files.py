"""Attacks on files: of the user who trains, of the system, of other calls."""

from __future__ import annotations

from appo.tools.python.attacks.attack import REFUSED, Attack

_SECRET = {
    "read": "open(secret).read()",
    "write": "open(secret, 'w')",
    "append": "open(secret, 'a')",
    "cut": "os.truncate(secret, 0)",
    "open to cut": "os.open(secret, os.O_RDONLY | os.O_TRUNC)",
    "read from its place": "os.read(os.open('secret', os.O_RDONLY, dir_fd=os.open(folder, os.O_PATH)), 9)",
    "list its folder": "os.listdir(folder)",
    "walk to it": "os.open(os.path.relpath(secret), os.O_RDONLY)",
    "enter its folder": "(os.chdir(folder), open('secret').read())",
    "remove": "os.unlink(secret)",
    "rename": "os.rename(secret, secret + '2')",
    "move here": "os.rename(secret, 'here')",
    "replace": "(open('mine', 'w').close(), os.replace('mine', secret))",
    "link": "(os.link(secret, 'linked'), open('linked').read())",
    "read through a link": "(os.symlink(secret, 'link'), open('link').read())",
    "write through a link": "(os.symlink(secret, 'link2'), open('link2', 'a'))",
    "read through a link to its folder": "(os.symlink(folder, 'way'), open('way/secret').read())",
    "create beside it": "open(folder + '/new', 'w')",
    "make a folder beside it": "os.mkdir(folder + '/new')",
    "make a pipe beside it": "os.mkfifo(folder + '/new')",
    "make a link beside it": "os.symlink('/', folder + '/new')",
    "change its mode": "os.chmod(secret, 0)",
    "change its times": "os.utime(secret, (1, 1))",
    "change its owner": "os.chown(secret, os.getuid(), os.getgid())",
    "set an attribute": "os.setxattr(secret, 'user.x', b'x')",
    "execute": "os.execv(secret, ['x'])",
    "map into memory": "__import__('mmap').mmap(os.open(secret, os.O_RDONLY), 4, access=1)[:]",
    "copy within the kernel": "os.sendfile(1, os.open(secret, os.O_RDONLY), 0, 9)",
    "watch": "call({'x86_64': 253, 'aarch64': 26}[os.uname().machine])",
}
_SYSTEM = {
    "read the users": "open('/etc/passwd').read()",
    "read their passwords": "open('/etc/shadow').read()",
    "list processes": "os.listdir('/proc')",
    "read devices": "os.listdir('/sys/class')",
    "read a disk": "open('/dev/vda', 'rb').read(1)",
    "read the console": "os.open('/dev/tty', os.O_RDWR)",
    "read the memory of the machine": "os.open('/dev/mem', os.O_RDONLY)",
    "read logs": "os.listdir('/var/log')",
    "reach sockets of services": "os.listdir('/run')",
    "write into the root": "open('/attack', 'w')",
    "write into the system": "open('/usr/attack', 'w')",
    "replace a program": "open('/usr/bin/env', 'ab')",
    "write into settings": "open('/etc/attack', 'w')",
    "write into the devices": "open('/dev/attack', 'w')",
    "write into Python": "open(os.path.join(os.path.dirname(os.__file__), 'attack.py'), 'w')",
    "change Python": "open(os.__file__, 'a')",
    "change a mode of Python": "os.chmod(os.__file__, 0o777)",
    "make a disk": "os.mknod('disk', 0o60666, os.makedev(8, 0))",
    "make a terminal": "os.mknod('tty', 0o20666, os.makedev(5, 0))",
    "make another root": "os.chroot('.')",
    "mount": "call({'x86_64': 165, 'aarch64': 40}[os.uname().machine])",
}
_LEFT = "[name for name in os.listdir('.')] + [name for name in os.listdir('/tmp') if name == 'left']"
_HOME = "[name for name in os.listdir('{home}') if not os.__file__.startswith('{home}/' + name)]"
"""Besides the way to Python, which may lie there."""
_NONE = rf"'done: \[\]'|{REFUSED}"

ATTACKS = [
    *(Attack(f"another's file: {name}", f"attempt(lambda: {act})") for name, act in _SECRET.items()),
    *(Attack(f"the system's files: {name}", f"attempt(lambda: {act})") for name, act in _SYSTEM.items()),
    Attack("own folder: leave something", "open('left', 'w').close()", ""),
    Attack("own folder: find what others left", f"attempt(lambda: {_LEFT})", _NONE),
    Attack("own folder: list that of all calls", "attempt(lambda: os.listdir('..'))", wall="landlock"),
    *(
        Attack(f"the system's files: list {home}", f"attempt(lambda: {_HOME.format(home=home)})", _NONE)
        for home in ("/root", "/home")
    ),
]
