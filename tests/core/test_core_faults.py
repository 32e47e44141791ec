"""What cannot be read is reported; what cannot be written is raised; nothing crashes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import signal
import subprocess
import sys
import textwrap
import zlib
from array import array
from pathlib import Path

import pytest
from moves import POISON, POISONED_LEAF, Piece, leaves_of, pack, run

from fastckpt import _core
from fastckpt.constants import LEAF_SIZE

DATA = random.Random(8).randbytes(12 * 1024 * 1024)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("source", ["file", "direct"])
@pytest.mark.parametrize("sink", ["none", "memory", "file"])
@pytest.mark.parametrize("cut", [0, 1, 4096, 16384, 20_000, 5_000_001, 8 << 20])
def test_end_of_file_in_an_extent(direct_dir: Path, source: str, sink: str, cut: int) -> None:
    outcome = run(direct_dir, DATA[:cut], [Piece(0, 0, len(DATA))], source=source, sink=sink, sink_size=len(DATA))
    assert outcome.faults == [(0, cut, len(DATA) - cut, 0)]
    whole = cut // LEAF_SIZE
    count = len(DATA) // LEAF_SIZE
    assert outcome.leaves == [
        POISONED_LEAF,
        *leaves_of(DATA[: whole * LEAF_SIZE]),
        *[0] * (count - whole),
        POISONED_LEAF,
    ]
    assert outcome.crcs == [0]
    if sink != "none":
        assert outcome.sink[: whole * LEAF_SIZE] == DATA[: whole * LEAF_SIZE]
    if sink == "file":
        assert set(outcome.sink[whole * LEAF_SIZE :]) == {POISON}


@pytest.mark.parametrize("cut", [0, 100_000, 250_000, 299_999])
def test_end_of_file_among_neighbours(direct_dir: Path, cut: int) -> None:
    pieces = [Piece(at, at, 99_000) for at in range(0, 400_000, 100_000)]
    outcome = run(direct_dir, DATA[:cut], pieces, source="direct", sink="memory", sink_size=400_000)
    there = [min(max(cut - piece.source, 0), piece.size) for piece in pieces]
    assert outcome.faults == [(n, got, 99_000 - got, 0) for n, got in enumerate(there) if got < 99_000]
    for piece, got in zip(pieces, there, strict=True):
        whole = got if got == piece.size else got // LEAF_SIZE * LEAF_SIZE
        assert outcome.sink[piece.sink : piece.sink + whole] == DATA[piece.source : piece.source + whole]


def test_other_extents_are_not_concerned(tmp_path: Path) -> None:
    pieces = [Piece(0, 0, 100_000), Piece(len(DATA) - 10, 200_000, 50_000), Piece(500_000, 300_000, 3_000_000)]
    outcome = run(tmp_path, DATA, pieces, source="file", sink="memory", sink_size=4_000_000)
    assert outcome.faults == [(1, 10, 49_990, 0)]
    assert outcome.crcs == [zlib.crc32(DATA[:100_000]), 0, zlib.crc32(DATA[500_000:3_500_000])]
    assert outcome.sink[300_000:3_300_000] == DATA[500_000:3_500_000]


def test_closed_source() -> None:
    fd = os.open("/dev/zero", os.O_RDONLY)
    os.close(fd)
    rows = pack([(0, 0, 3_000_000, 0), (0, 0, 10, 184)])
    leaves = array("Q", [POISONED_LEAF]) * 185
    expected = [(0, 0, 3_000_000, errno.EBADF), (1, 0, 10, errno.EBADF)]
    assert _core.transfer(fd, -2, rows, leaves, None, threads=2) == expected
    assert set(leaves) == {0}


def test_closed_direct_source_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    sink = bytearray(len(DATA))
    with (tmp_path / "source").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        closed = os.dup(file.fileno())
        os.close(closed)
        rows = pack([(0, _core.address(sink), len(DATA), 0)])
        assert _core.transfer(file.fileno(), -1, rows, None, None, threads=2, source_direct_fd=closed) == []
    assert sink == DATA


def test_source_that_is_a_directory(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    rows = pack([(0, 0, 2_000_000, 0)])
    assert _core.transfer(fd, -2, rows, None, array("I", [1]), threads=2) == [(0, 0, 2_000_000, errno.EISDIR)]
    os.close(fd)


def test_bad_sectors_cost_their_leaves_only(tmp_path: Path) -> None:
    # A shim in front of pread plays the disk: EIO for every read that touches a bad sector.
    shim = tmp_path / "shim.c"
    shim.write_text(
        textwrap.dedent(
            """
            #define _GNU_SOURCE
            #include <dlfcn.h>
            #include <errno.h>
            #include <unistd.h>
            static ssize_t touch(const char* name, int fd, void* to, size_t size, off_t at) {
              static const off_t bad[] = {50000, 3000000};
              for (int i = 0; i < 2; ++i)
                if (at <= bad[i] && bad[i] < at + (off_t)size) { errno = EIO; return -1; }
              ssize_t (*real)(int, void*, size_t, off_t) = dlsym(RTLD_NEXT, name);
              return real(fd, to, size, at);
            }
            ssize_t pread(int fd, void* to, size_t size, off_t at) { return touch("pread", fd, to, size, at); }
            ssize_t pread64(int fd, void* to, size_t size, off_t at) { return touch("pread64", fd, to, size, at); }
            """
        )
    )
    library = tmp_path / "shim.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, shim, "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler for the shim: {error}")
    source = tmp_path / "source"
    source.write_bytes(DATA[:4_000_000])
    program = """
        import os, sys
        from array import array
        from fastckpt import _core
        fd = os.open(sys.argv[1], os.O_RDONLY)
        leaves = array("Q", bytes(8 * 245))
        sink = bytearray(4_000_000)
        rows = array("Q", [0, _core.address(sink), 4_000_000, 0])
        print(_core.transfer(fd, -1, rows, leaves, None, threads=2))
        print([leaf for leaf in range(245) if leaves[leaf] == 0])
        print(_core.find_blocks(fd, b"FCKPTREC", 0, 2**62))
    """
    source.write_bytes(DATA[:8192] + b"FCKPTREC" + DATA[8200 : 1 << 20] + b"FCKPTREC" + DATA[(1 << 20) + 8 : 4_000_000])
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(source)],
        env={**os.environ, "LD_PRELOAD": str(library), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    leaf = [50_000 // LEAF_SIZE, 3_000_000 // LEAF_SIZE]
    assert out[0] == str([(0, n * LEAF_SIZE, LEAF_SIZE, errno.EIO) for n in leaf])
    assert out[1] == str(leaf)
    assert out[2] == str([8192, 1 << 20])


def test_full_device() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this platform has no /dev/full")
    fd = os.open("/dev/full", os.O_WRONLY)
    for size in (100, len(DATA)):
        with pytest.raises(OSError, match=r"file offset 4096\b") as caught:
            _core.transfer(-1, fd, pack([(_core.address(DATA), 4096, size, 0)]), None, None, threads=1)
        assert caught.value.errno == errno.ENOSPC
    os.close(fd)


def test_sink_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    rows = pack([(_core.address(DATA), 0, len(DATA), 0)])
    with pytest.raises(OSError, match="writing at file offset") as caught:
        _core.transfer(-1, fd, rows, None, None, threads=2)
    assert caught.value.errno == errno.EBADF
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _core.transfer(-1, fd, rows, None, None, threads=2)
    assert (tmp_path / "file").read_bytes() == b"old"


def test_direct_sink_that_is_closed(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        closed = os.dup(file.fileno())
        os.close(closed)
        rows = pack([(_core.address(DATA), 0, len(DATA), 0)])
        with pytest.raises(OSError, match="file offset"):
            _core.transfer(-1, file.fileno(), rows, None, None, threads=2, sink_direct_fd=closed)


def test_file_size_limit(tmp_path: Path) -> None:
    program = """
        import errno, os, resource, signal, sys
        from array import array
        from fastckpt import _core
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        data = bytes(4_000_000)
        try:
            _core.transfer(-1, fd, array("Q", [_core.address(data), 0, len(data), 0]), None, None, threads=1)
        except OSError as error:
            assert error.errno == errno.EFBIG and "1000000" in str(error), error
            sys.exit(7)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "file")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=env).returncode == 7


def test_where_no_thread_can_be_had(tmp_path: Path) -> None:
    # A thread's stack no longer fits the address space: the calling thread does the work.
    program = """
        import os, resource, sys, threading, zlib
        from array import array
        from fastckpt import _core
        data = bytes(range(256)) * 65536
        used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20), used + (4 << 20)))
        crcs, done = array("I", [0]), []
        rows = array("Q", [_core.address(data), 0, len(data), 0])
        assert _core.transfer(-1, -2, rows, None, crcs, threads=2, progress=done.append) == []
        assert crcs[0] == zlib.crc32(data) and done == [len(data)]
        # Nor does the scratch memory of a direct read: an exception, not a crash.
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        rows = array("Q", [0, 0, 64 << 20, 0])
        try:
            _core.transfer(fd, -2, rows, None, None, threads=2, source_direct_fd=fd)
        except MemoryError:
            pass
        sys.exit(7)
    """
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("this platform has no /proc")
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "file")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=env).returncode == 7


@pytest.mark.parametrize("sink", ["none", "memory"])
def test_map_of_a_cut_file_is_a_fault_and_not_a_signal(tmp_path: Path, sink: str) -> None:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    cut = 5_000_000
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        path.write_bytes(DATA)
        fd = os.open(path, os.O_RDWR)
        address = libc.mmap(None, len(DATA), mmap.PROT_READ, flags, fd, 0)
        os.ftruncate(fd, cut)
        leaves = array("Q", [POISONED_LEAF]) * (len(DATA) // LEAF_SIZE)
        target = bytearray(len(DATA))
        rows = pack([(address, _core.address(target), len(DATA), 0)])
        faults = _core.transfer(-1, -2 if sink == "none" else -1, rows, leaves, None, threads=2, mapped=True)
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(len(DATA)))
        os.close(fd)
        # The last page that the file reaches is there, zeros behind its end; its leaf is not whole.
        lost = cut // LEAF_SIZE * LEAF_SIZE
        if faults[0][1] == lost + LEAF_SIZE:
            pytest.fail("a leaf past the end of the file was read")
        assert faults == [(0, lost, len(DATA) - lost, errno.EFAULT)]
        assert list(leaves) == leaves_of(DATA[:lost]) + [0] * (len(DATA) // LEAF_SIZE - cut // LEAF_SIZE)
        if sink == "memory":
            assert target[:lost] == DATA[:lost]


def in_a_process(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has ``path`` as its argument, `map_of` of a file, and a ``transfer`` that hashes a map."""
    head = """
        import ctypes, faulthandler, mmap, os, signal, sys, threading
        from array import array
        from fastckpt import _core

        path, size = sys.argv[1], 64 << 20
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]

        def map_of(fd):
            # Not the module's, which looks at the size of the file before it gives a byte.
            return libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)

        def transfer(address, threads=2):
            leaves = array("Q", [7]) * (size >> 14)
            rows = array("Q", [address, 0, size, 0])
            return _core.transfer(-1, -2, rows, leaves, None, threads=threads, mapped=True)

        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.truncate(path, size)
    """
    command = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program), str(path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_a_file_cut_while_its_map_is_hashed_is_a_fault(tmp_path: Path) -> None:
    # No question that is asked beforehand can notice this; sixty cuts at any moment, and each answer is a whole one.
    program = """
        met = 0
        for number in range(60):
            os.truncate(path, size)
            address = map_of(fd)
            cutter = threading.Timer(number * 0.0002, lambda: os.truncate(path, 4096))
            cutter.start()
            faults = transfer(address)
            cutter.join()
            met += bool(faults)
            assert all(error == 14 and not offset % 16384 for _, offset, _, error in faults), faults
            libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        sys.exit(7 if met else 8)
    """
    assert in_a_process(program, tmp_path / "file").returncode == 7


def test_bus_errors_of_others_go_where_they_went(tmp_path: Path) -> None:
    # A handler of the program is called while a map is hashed, and is still in place when that is over.
    program = """
        heard = []
        signal.signal(signal.SIGBUS, lambda *_: heard.append(1))
        address = map_of(fd)
        for _ in range(20):
            threading.Timer(0.001, lambda: os.kill(os.getpid(), signal.SIGBUS)).start()
            while not heard:
                transfer(address)
            heard.clear()
        os.kill(os.getpid(), signal.SIGBUS)
        sys.exit(7 if heard else 8)
    """
    assert in_a_process(program, tmp_path / "file").returncode == 7


@pytest.mark.parametrize("enable", [False, True])
def test_a_bus_error_elsewhere_still_ends_the_process(tmp_path: Path, enable: bool) -> None:
    # Whoever else touches what is not there meanwhile dies of it as ever, with faulthandler's report if that is on.
    program = f"""
        if {enable}:
            faulthandler.enable()
        address, other = map_of(fd), os.open(path + "2", os.O_RDWR | os.O_CREAT)
        os.truncate(path + "2", size)
        gone = map_of(other)
        os.truncate(path + "2", 0)
        threading.Timer(0.01, lambda: ctypes.string_at(gone, 1)).start()
        while True:
            transfer(address)
    """
    outcome = in_a_process(program, tmp_path / "file")
    assert outcome.returncode == -signal.SIGBUS
    assert ("Bus error" in outcome.stderr) == enable


def test_destination_that_is_no_memory(tmp_path: Path) -> None:
    # The kernel notices an address that is not mapped; the fault names it, and nothing crashes.
    (tmp_path / "source").write_bytes(DATA)
    with (tmp_path / "source").open("rb") as file:
        rows = pack([(0, 4096, len(DATA), 0)])
        faults = _core.transfer(file.fileno(), -1, rows, None, None, threads=2)
    assert faults == [(0, 0, len(DATA), errno.EFAULT)]
