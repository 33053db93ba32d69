"""Code reaches nothing of the training process: not its memory, environment, files, nor its existence by signals."""

from dataclasses import replace
from pathlib import Path

from appo.tools.python.attacks.attack import SETTINGS
from appo.tools.python.client import Interpreter

SECRET = "the accepted answer is 42"


def test_own_folder_can_be_used_without_namespaces(behind_landlock):
    code = (
        "import os, tempfile\n"
        "os.mkdir('d')\n"
        "open('d/f', 'w').write('x')\n"
        "os.rename('d/f', 'f')\n"
        "open('f').read(), tempfile.TemporaryFile().write(b'xy'), open('/dev/null', 'w').write('a')"
    )
    assert behind_landlock(code) == "('x', 2, 1)"


def test_answers_of_the_environments_that_come_with_appo_cannot_be_drawn_where_packages_can_be_imported(walls):
    import appo

    folder = Path(appo.__file__).parent
    for wall in walls[:-1]:
        interpreter = Interpreter(replace(SETTINGS, wall=wall, packages=True, memory_mb=1024))
        code = (
            "found = []\n"
            "try:\n    from appo.environments.problems import WorldProblems\n    found.append('import')\n"
            "except (ImportError, OSError):\n    pass\n"
            f"try:\n    open({str(folder / 'environments' / 'problems.py')!r})\n    found.append('read')\n"
            "except OSError:\n    pass\n"
            "import numpy\n"
            "found"
        )
        assert interpreter.open().run(code, 60.0, 1000).output == "[]\n", wall
        interpreter.stop()
