"""The tree printed at the top of ``errors.py`` is the tree of the code."""

import inspect
import pickle

from mixquant_agents import errors


def test_docstring_lists_every_error_at_its_place() -> None:
    tree = inspect.getdoc(errors) or ""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in tree.splitlines():
        names = [word for word in line.replace("─", " ").split() if word.endswith("Error")]
        if not names or not line.startswith(("MixQuantError", "├", "│", "└", " ")):
            continue
        depth = (len(line) - len(line.lstrip(" │├└"))) // 4
        path = [*path[:depth], names[0]]
        drawn[names[0]] = path[-2] if len(path) > 1 else "Exception"
    real = {name: getattr(errors, name).__bases__[0].__name__ for name in errors.__all__}
    assert drawn == real


def test_all_is_sorted_and_complete() -> None:
    defined = {name for name, item in vars(errors).items() if inspect.isclass(item) and issubclass(item, Exception)}
    assert errors.__all__ == sorted(defined)


def test_context_overflow_carries_both_numbers_even_through_pickle() -> None:
    error = pickle.loads(pickle.dumps(errors.ContextOverflowError(9000, 8192)))  # noqa: S301 - our own bytes
    assert (error.prompt_tokens, error.max_model_len) == (9000, 8192)
    assert "9000" in str(error)
    assert "8192" in str(error)
    asked = errors.ContextOverflowError(9000, 8192, 77)
    assert str(pickle.loads(pickle.dumps(asked))) == str(asked)  # noqa: S301 - our own bytes
