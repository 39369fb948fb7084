"""The first bytes of a plan."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from trt_native.errors import PlanError

__all__ = ["PlanHeader"]


HEADER_BYTES = 32
_PRODUCTS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}


@dataclass(frozen=True, slots=True)
class PlanHeader:
    """Contents of the first bytes of a plan.

    Attributes:
        product: ``TensorRT`` or ``TensorRT-RTX``.
        version: Version of that library: major, minor, patch, build (modulo 256 each).
        declared_bytes: Length of the whole plan as the header states it; None where the layout
            of the header is not known to hold it.
    """

    product: str
    version: tuple[int, int, int, int]
    declared_bytes: int | None

    @staticmethod
    def tags() -> tuple[bytes, ...]:
        """The first four bytes of plans."""
        return tuple(_PRODUCTS)

    @classmethod
    def parse(cls, data: bytes | memoryview) -> PlanHeader:
        """Read the header; ``data`` needs the first 32 bytes of a plan.

        The four tag bytes and the version at bytes 24 to 27 are what trtexec's
        ``--getPlanVersionOnly`` reads; the length at bytes 16 to 23 was read off the plans that
        TensorRT-RTX 1.4 to 1.7 write.

        Raises:
            PlanError: the data is too short or does not start with a plan's tag.
        """
        head = bytes(data[:HEADER_BYTES])
        if len(head) < HEADER_BYTES:
            raise PlanError(f"not a TensorRT plan: only {len(head)} bytes long")
        product = _PRODUCTS.get(head[:4])
        if product is None:
            raise PlanError(
                f"not a TensorRT plan: it starts with {head[:4]!r} instead of b'ftrt' or b'vtrt'"
            )
        (length,) = struct.unpack_from("<Q", head, 16)
        declared = length if product == "TensorRT-RTX" else None
        return cls(product, (head[24], head[25], head[26], head[27]), declared)

    @property
    def version_text(self) -> str:
        """The version as TensorRT writes it, such as ``1.6.1.120``."""
        return ".".join(map(str, self.version))

    @property
    def backend(self) -> str:
        """The name that :func:`~trt_native.backends.registry.load_backend` has for the library."""
        return "rtx" if self.product == "TensorRT-RTX" else "tensorrt"

    def mismatch(self, product: str, version: str) -> str | None:
        """Reason why a library of this name and version will not load the plan; None if it should.

        TensorRT loads only plans of its own exact version, unless a plan was built to be version
        compatible, which its header does not record: then only the major version decides here.
        """
        if product != self.product:
            return f"the plan is for {self.product} {self.version_text}, not for {product}"
        if self.product == "TensorRT-RTX":
            return self.mismatch_exact(version)
        return (
            None
            if version_numbers(version)[:1] == self.version[:1]
            else self.mismatch_exact(version)
        )

    def mismatch_exact(self, version: str) -> str | None:
        """As :meth:`mismatch`, where only the plan's exact version will do."""
        wanted = tuple(number % 256 for number in version_numbers(version)[:4])
        if wanted == self.version[: len(wanted)]:
            return None
        return (
            f"the plan was built by {self.product} {self.version_text}, here is {version};"
            " install that version or build the plan again"
        )


def version_numbers(version: str) -> tuple[int, ...]:
    # No part has more digits than Python converts.
    return tuple(int(part[:9]) for part in version.split(".") if part.isdecimal())
