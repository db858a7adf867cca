"""Runs one program with little to reach: started by ``sandbox.py`` as a script of its own, never imported
there.

From standard input it reads ``{program, tests, token, folder, python, apart, bytes, file_bytes, processes,
seconds}``. It becomes another user where it is root, leaves the network, the processes and the mounts of this
machine where the system lets it, and starts the program in a child of a child. The line ``shut: …`` on
standard output says what was taken away; the token follows where program and tests ran to their end."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress

NOBODY = 65534
CLONES = {"files": 0x00020000, "processes": 0x20000000 | 0x08000000, "network": 0x40000000}
"""CLONE_NEWNS; CLONE_NEWPID and CLONE_NEWIPC; CLONE_NEWNET."""
NEW_USER = 0x10000000
MS_BIND, MS_RECURSIVE, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_NO_NEW_PRIVS = 1, 4, 24, 36, 38
MOUNT_SETATTR, CAPSET = 442, {"x86_64": 126, "aarch64": 91}
RECURSIVE, READ_ONLY = 0x8000, 1
CAPABILITIES = 64
LATE = 124
"""How this ends where the program's time was up."""
HIDDEN = ("/home", "/root", "/proc", "/dev/shm")
libc = ctypes.CDLL(None, use_errno=True)


def called(found: int) -> None:
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def unprivileged(folder: str, python: str) -> bool:
    """Stop being root; the interpreter's library is then read at ``python``, wherever it lies."""
    if os.geteuid() != 0:
        return True
    os.chown(folder, NOBODY, NOBODY)
    prefix = os.path.realpath(sys.base_prefix)
    try:
        called(libc.unshare(CLONES["files"]))
        called(libc.mount(b"none", b"/", None, MS_RECURSIVE | MS_PRIVATE, None))
        called(libc.mount(prefix.encode(), python.encode(), None, MS_BIND | MS_RECURSIVE, None))
        for places in (
            sys.path,
            *(m.__path__ for m in sys.modules.values() if isinstance(getattr(m, "__path__", None), list)),
        ):
            places[:] = [p.replace(sys.base_prefix, python, 1) for p in places]
    except OSError:
        if not os.stat(prefix).st_mode & 0o005:
            return False
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    called(libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))
    return True


def leave() -> list[str]:
    """Leave network, processes and mounts of this machine: which of them the system let go."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        called(libc.unshare(NEW_USER | sum(CLONES.values())))
    except OSError:
        return []
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return ["network", "processes"]


def enclose(folder: str, size: int) -> bool:
    """Make all files read-only, hide those of people, and put an empty place of ``size`` bytes at
    ``folder``."""
    options = f"size={size},mode=700".encode()
    kept = [os.path.realpath(p) for p in sys.path]
    attributes = (ctypes.c_uint64 * 4)(READ_ONLY, 0, 0, 0)
    try:
        called(libc.mount(b"none", b"/", None, MS_RECURSIVE | MS_PRIVATE, None))
        called(libc.syscall(MOUNT_SETATTR, -100, b"/", RECURSIVE, attributes, ctypes.sizeof(attributes)))
        called(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options))
    except OSError:
        return False
    os.chdir(folder)  # a place of its own, also where what is above it is hidden
    for place in HIDDEN:
        if os.path.isdir(place) and not any(k.startswith(f"{place}/") for k in kept):
            libc.mount(b"tmpfs", place.encode(), b"tmpfs", READ_ONLY, b"size=4k")
    return True


def powerless() -> None:
    """Give up all capabilities, for good."""
    for one in range(CAPABILITIES):
        libc.prctl(PR_CAPBSET_DROP, one, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.uname().machine in CAPSET:
        called(libc.syscall(CAPSET[os.uname().machine], header, none))
    called(libc.prctl(PR_NO_NEW_PRIVS, 1, 0, 0, 0))


def limited(told: dict[str, float], apart: bool) -> None:
    """The limits that every process of the program has."""

    def most(what: int, number: float) -> None:
        hard = resource.getrlimit(what)[1]
        end = int(number) if hard == resource.RLIM_INFINITY else min(int(number), hard)
        resource.setrlimit(what, (end, end))

    most(resource.RLIMIT_AS, told["bytes"])
    most(resource.RLIMIT_FSIZE, told["file_bytes"])
    most(resource.RLIMIT_CPU, told["seconds"] + 1)
    most(resource.RLIMIT_NOFILE, 64)
    most(resource.RLIMIT_CORE, 0)
    if apart or os.geteuid() == NOBODY:  # elsewhere the user's other processes would count
        most(resource.RLIMIT_NPROC, told["processes"])


def worked(told: dict[str, str], end: int) -> int:
    """Run the program, then its tests, in one namespace, and say so where both came to their end."""
    space = {"__name__": "__main__"}
    try:
        exec(compile(told["program"], "program", "exec"), space)
        exec(compile(told["tests"], "tests", "exec"), space)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}"[:500].encode(errors="replace"))
        return 1
    os.write(end, told["token"].encode())
    return 0


def waited(child: int) -> int:
    """Wait for a child, and for whatever else becomes one."""
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def watched(worker: int, seconds: float, apart: bool) -> int:
    """Wait for the program, and no longer than its time; nothing that it started is left."""

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return 1 if waited(worker) else 0
    except TimeoutError:
        return LATE
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        with suppress(OSError):
            os.killpg(worker, signal.SIGKILL)
        while not apart and (left := children(os.getpid())):  # elsewhere they end with this process
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                except OSError:
                    continue


def children(parent: int) -> list[int]:
    """The processes whose parent this one is."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                above = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if above == parent:
            found.append(int(name))
    return found


def main() -> None:
    told = json.load(sys.stdin)
    plain = unprivileged(told["folder"], told["python"])
    shut = leave() if told["apart"] else []
    apart = bool(shut)
    init = os.fork()
    if init:
        os.close(1)
        sys.exit(waited(init))
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if apart and enclose(told["folder"], int(told["file_bytes"])):
        shut.append("files")
    powerless()
    os.write(1, f"shut: {' '.join([*shut, *(['user'] if plain else [])])}\n".encode())
    worker = os.fork()
    if worker:
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        os._exit(watched(worker, told["seconds"], apart))
    os.setpgid(0, 0)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    limited(told, apart)
    end = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os._exit(worked(told, end))


if __name__ == "__main__":
    main()
