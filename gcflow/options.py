"""What every block of options has in common, wherever it comes from."""

from typing import Any, ClassVar


def require(condition: bool, key: str, value: object, expected: str) -> None:
    """Raises ValueError("key is value, expected ...") unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key} is {value!r}, expected {expected}")


class Strict:
    """Makes pydantic refuse unknown keys and silent type conversions."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
