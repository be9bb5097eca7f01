"""Build the optional C extension; without a compiler the package works by its numpy fallback."""

from setuptools import Extension, setup

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
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
