"""The flat names of all tensors by the rule of ``SPEC.md``, section 8.3, written from the text alone."""

from __future__ import annotations

from typing import Any

from reference_tree import FORMS, PAIRS, Named, Ordered, Tensor


def flat_names(state: Any) -> list[str]:
    """The names of all tensors by the rule of section 8.3, from what the reference reader returns."""
    paths: list[tuple[Any, ...]] = []

    def walk(value: Any, path: tuple[Any, ...]) -> None:
        if isinstance(value, Tensor):
            paths.append(path)
        elif isinstance(value, Named) and value.name == "object":
            thing(value.payload[1], path)
        elif isinstance(value, Named):
            payload(value.payload, FORMS.get(value.name, "any"), path)
        elif isinstance(value, Ordered):
            walk(value.pairs, path)
            walk(value.attributes, (*path, "__dict__"))
        elif isinstance(value, dict):
            for key, item in value.items():
                walk(item, (*path, key))
        elif isinstance(value, list | tuple):
            for number, item in enumerate(value):
                walk(item, (*path, number))

    def payload(value: Any, form: Any, path: tuple[Any, ...]) -> None:
        if isinstance(form, tuple):
            for item, part in zip(value, form, strict=True):
                payload(item, part, path)
        elif form == PAIRS:
            for number, (key, item) in enumerate(value):
                walk(item, (*path, key if key is None or type(key) in (str, bool, int) else number))
        else:
            walk(value, path)

    def thing(content: dict[str, Any], path: tuple[Any, ...]) -> None:
        for key, value in content.items():
            if key == "args" and isinstance(value, tuple):
                for number, item in enumerate(value):
                    walk(item, path if len(value) == 1 else (*path, number))
            elif key == "state":
                attributes(value, path)
            elif key == "pairs" and all(isinstance(item, tuple) and len(item) == 2 for item in value):
                payload(value, PAIRS, path)
            else:
                walk(value, path if key in ("items", "pairs") else (*path, key))

    def attributes(value: Any, path: tuple[Any, ...]) -> None:
        halves = value if isinstance(value, tuple) and len(value) == 2 else (value,)
        if not all(half is None or isinstance(half, dict | Ordered) for half in halves) or value is None:
            walk(value, (*path, "state"))
            return
        for half in halves:
            for key, item in (half.pairs if isinstance(half, Ordered) else half or {}).items():
                if key in ("_modules", "_parameters", "_buffers") and isinstance(item, dict | Ordered):
                    walk(item, path)
                else:
                    walk(item, path if key == "_local_tensor" else (*path, key))
            if isinstance(half, Ordered):
                walk(half.attributes, (*path, "__dict__"))

    walk(state, ())
    plain = [".".join(str(key) for key in path) or "tensor" for path in paths]
    given_names: list[str] = []
    for name in plain:
        candidate, k = name, 2
        while candidate in given_names or (candidate != name and candidate in plain):
            candidate = f"{name}#{k}"
            k += 1
        given_names.append(candidate)
    return given_names
