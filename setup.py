"""Build what is in C and optional: without a compiler the package works by its fallbacks."""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CLIENT = "pgrecall/agent/client"


class BuildWithClient(build_ext):
    """The extension, and the client for images without Python (docs/agent-protocol.md)."""

    def run(self):
        """As always; then the client, beside its source or into the build."""
        super().run()
        is_in_place = self.inplace or getattr(self, "editable_mode", False)
        directory = Path("src" if is_in_place else self.build_lib) / CLIENT
        directory.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        made = directory / "pgrecall-client"
        aside = directory / "pgrecall-client.new"
        command = [*compiler, "-std=gnu11", "-O2", "-s", "-o", str(aside)]
        command.append(f"src/{CLIENT}/pgrecall_client.c")
        # Statically, it runs in any image; a C library without libc.a still makes one for its like.
        for way, missed in (["-static"], "is not static"), ([], "was not built"):
            try:
                subprocess.run([*command, *way], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                self.warn(f"the client for images without Python {missed}: {error}")
            else:
                aside.rename(made)
                return


setup(
    ext_modules=[
        Extension(
            "pgrecall.codec._native",
            sources=["src/pgrecall/codec/_native.c"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildWithClient},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
