"""The compiling half of python.py, run as a program: sources in, .pyc files out.

A process of its own, with a fixed hash seed, because marshal's output depends on which strings the process has interned
so far. Standard input is a JSON list of jobs: [source path, name on the board, output path, keep docstrings].
Standard library only; nothing of ours, as it must not see anything but its jobs.
"""

import ast
import importlib.util
import json
import marshal
import sys


def without_docstrings(tree: ast.Module) -> ast.Module:
    """Remove the docstrings of a module. Unlike -OO it keeps assert, which some libraries need to be right."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass(lineno=first.lineno, col_offset=0)]
            # The end positions that Python 3.11 insists on.
            ast.fix_missing_locations(node)
    return tree


def compiled(source: bytes, shown: str, keep_docstrings: bool) -> bytes:
    """Return a .pyc whose loader checks nothing: no time, no hash (PEP 552, unchecked). `shown` is for tracebacks."""
    tree = ast.parse(source, shown)
    if not keep_docstrings:
        tree = without_docstrings(tree)
    code = compile(tree, shown, "exec", dont_inherit=True, optimize=0)
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return head + marshal.dumps(code)


def main() -> int:
    """Do the jobs of standard input; say which one failed."""
    for path, shown, out, keep_docstrings in json.load(sys.stdin):
        with open(path, "rb") as file:
            source = file.read()
        try:
            content = compiled(source, shown, keep_docstrings)
        except (SyntaxError, ValueError) as error:
            sys.stderr.write(f"compile {path}: {error}\n")
            return 1
        with open(out, "wb") as file:
            file.write(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
