import os
import select
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from appo.tools import PythonTool, ToolError, ToolTimeoutError


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print(1 + 1)", "2"),
        ("1 + 1", "2"),
        ("x = 3\nx * 2", "6"),
        ("'text'", "'text'"),
        ("print('a')\n'b'", "a\n'b'"),
        ("None", "(no output)"),
        ("x = 3", "(no output)"),
        ("", "(no output)"),
        ("def f():\n    return 4\n\nf()", "4"),
        ("import math\nmath.gcd(12, 18)", "6"),
        ("from dataclasses import dataclass\n\n@dataclass\nclass A:\n    x: int\n\nA(3)", "A(x=3)"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out')", "out\nerr\nout"),
        ("import os\nos.write(1, b'raw')\nNone", "raw"),
        ("import sys\nprint('bye')\nsys.exit()", "bye"),
        ("print('  indented')", "  indented"),
        ("'\\N{SNOWMAN}'", "'\N{SNOWMAN}'"),
        ("__name__", "'__main__'"),
        ("import pickle\n\nclass A:\n    pass\n\ntype(pickle.loads(pickle.dumps(A()))) is A", "True"),
    ],
)
def test_result_is_what_a_notebook_would_show(python, code, result):
    assert python(code) == result


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("print('before')\n1 / 0", "before\nZeroDivisionError: division by zero"),
        ("1 +", '  File "<python>", line 1\n    1 +\n       ^\nSyntaxError: invalid syntax'),
        ("input()", "EOFError: EOF when reading a line"),
        ("import sys\nsys.exit(3)", "Exit code 3."),
        ("import sys\nsys.exit('no good')", "no good"),
        ("import os\nprint('last words')\nos.kill(os.getpid(), 9)", "last words\nKilled by signal 9 (Killed)."),
        ("x = 'x' * 10**10", "MemoryError"),
        ("x = []\nwhile True:\n    x.append(bytes(10**7))", "MemoryError"),
        ("open('f', 'wb').write(bytes(10**8))", "OSError: [Errno 27] File too large"),
    ],
)
def test_failure_is_told_in_the_last_lines_of_the_traceback(python, code, text):
    with pytest.raises(ToolError) as caught:
        python(code)
    assert str(caught.value) == text


def test_state_does_not_leak_between_calls(python):
    python("x = 1\nimport builtins\nbuiltins.y = 2\nopen('f', 'w').close()\nimport os\nos.environ['Z'] = '3'")
    with pytest.raises(ToolError, match="NameError: name 'x' is not defined"):
        python("x")
    with pytest.raises(ToolError, match="NameError: name 'y' is not defined"):
        python("y")
    assert python("import os\nos.listdir(), dict(os.environ)") == "([], {})"


@pytest.mark.parametrize("leave", ["", "open('file', 'w').close()\nos.makedirs('a/b')\n"])
def test_files_of_a_call_are_gone_after_it(python, leave):
    folder = python(f"import os\n{leave}print(os.getcwd())")
    assert os.path.isdir(os.path.dirname(folder))
    assert not os.path.exists(folder)


def test_environment_and_packages_of_the_training_process_are_out_of_reach(python):
    assert python("import os, ctypes\nctypes.CDLL(None).getenv(b'PATH')") == "0"
    with pytest.raises(ToolError, match="ModuleNotFoundError: No module named 'torch'"):
        python("import torch")
    assert os.environ["PATH"] not in python("open('/proc/self/environ').read()")


def test_random_numbers_differ_between_calls_but_sets_print_alike_in_every_interpreter(python):
    assert python("import random\nrandom.random()") != python("import random\nrandom.random()")
    other = PythonTool()
    other.start()
    letters = "{chr(97 + i) for i in range(20)}"
    assert other(letters) == python(letters)
    other.stop()


def test_endless_loop_ends_at_the_limit_and_the_next_call_works():
    tool = PythonTool(timeout_s=0.5)
    tool.start()
    interpreter = tool("import os\nos.getppid()")
    with pytest.raises(ToolTimeoutError) as caught:
        tool("print('begun')\nwhile True:\n    pass")
    assert str(caught.value) == "begun\nTimed out after 0.5 seconds."
    assert tool("import os\nos.getppid()") == interpreter
    tool.stop()


def test_endless_output_is_cut_at_once(python):
    result = python("while True:\n    print('x' * 999)")
    assert result == "x" * 999 + "\n" + "x" * 999 + "\n" + "\n[cut after 2000 characters]"


def test_long_output_of_a_call_that_ends_is_cut():
    tool = PythonTool(max_output_chars=3)
    tool.start()
    assert tool("'\\N{SNOWMAN}' * 5") == "'\N{SNOWMAN}\N{SNOWMAN}\n[cut after 3 characters]"
    tool.stop()


def test_many_calls_at_once_get_their_own_answers(python):
    with ThreadPoolExecutor(32) as pool:
        results = list(pool.map(python, [f"print({i} ** 2)" for i in range(96)]))
    assert results == [str(i**2) for i in range(96)]


def test_long_code_arrives_whole(python):
    lines = [f"x{i} = {i}" for i in range(50_000)]
    assert python("\n".join([*lines, "x49999"])) == "49999"


def test_interpreter_that_was_killed_is_replaced(python):
    with pytest.raises(ToolError, match="The interpreter was killed while the code ran"):
        python("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(60)")
    assert python("1 + 1") == "2"


def test_interpreter_that_hangs_is_replaced_and_calls_it_had_not_begun_run_on_its_successor(tmp_path):
    tool = PythonTool(timeout_s=1.0)
    tool.start()
    hung = int(tool("import os\nos.getppid()"))
    os.mkfifo(tmp_path / "pipe")
    hang = f"import os, time\nopen({str(tmp_path / 'pipe')!r}, 'w').close()\nos.kill(os.getppid(), 19)\ntime.sleep(60)"
    with ThreadPoolExecutor(2) as pool:
        hanging = pool.submit(tool, hang)
        (tmp_path / "pipe").read_text()
        tool.timeout_s = 30.0
        waiting = pool.submit(tool, "1 + 1")
        with pytest.raises(ToolTimeoutError):
            hanging.result()
        assert waiting.result() == "2"
    assert not is_alive(hung)
    tool.stop()


def test_descendants_end_with_their_call_even_in_a_session_of_their_own(python, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root may fork within a call")
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        f"    pipe = open({str(tmp_path / 'pipe')!r}, 'w')\n"
        "    print(os.getpid(), file=pipe, flush=True)\n"
        "    time.sleep(60)\n"
        f"open({str(tmp_path / 'done')!r}, 'r').read()"
    )
    os.mkfifo(tmp_path / "done")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(python, code)
        with open(tmp_path / "pipe") as pipe:
            pid = int(pipe.readline())
            assert is_alive(pid)
            open(tmp_path / "done", "w").close()
            assert call.result() == "''"
            # The pipe becomes readable, at its end, when its only writer is dead; left alone, it would sleep longer.
            assert select.select([pipe], [], [], 20.0)[0] == [pipe]
            assert pipe.read() == ""


def test_stop_ends_calls_and_leaves_neither_process_nor_file(tmp_path):
    tool = PythonTool(timeout_s=60.0)
    tool.start()
    os.mkfifo(tmp_path / "pipe")
    errors = []

    def loop():
        try:
            tool(
                "import os\n"
                f"with open({str(tmp_path / 'pipe')!r}, 'w') as pipe:\n"
                "    print(os.getpid(), os.getppid(), os.getcwd(), file=pipe)\n"
                "while True:\n"
                "    pass"
            )
        except ToolError as error:
            errors.append(str(error))

    thread = threading.Thread(target=loop)
    thread.start()
    pid, parent, folder = (tmp_path / "pipe").read_text().split()
    assert is_alive(int(pid))
    assert os.path.isdir(folder)
    tool.stop()
    thread.join(30.0)
    assert errors == ["The interpreter was killed while the code ran."]
    assert not is_alive(int(pid))
    assert not is_alive(int(parent))
    assert not os.path.exists(os.path.dirname(folder))


def test_interpreter_and_its_files_go_when_the_training_process_dies():
    code = (
        "import os\n"
        "from appo.tools import PythonTool\n"
        "tool = PythonTool()\n"
        "tool.start()\n"
        "print(tool('import os\\nprint(os.path.dirname(os.getcwd()))'), flush=True)\n"
        "os._exit(0)"
    )
    # The interpreter holds the error stream as well: reading to its end takes until the interpreter has ended.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60.0)
    assert done.stdout
    assert not os.path.exists(done.stdout.strip())


def test_works_again_after_stop_and_start():
    tool = PythonTool()
    with pytest.raises(RuntimeError, match="must be started"):
        tool("1")
    for _ in range(2):
        tool.start()
        tool.start()
        assert tool("1 + 1") == "2"
        tool.stop()
        tool.stop()
    with pytest.raises(RuntimeError, match="must be started"):
        tool("1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout_s": 0.0}, r"timeout_s must be positive and finite, got 0.0"),
        ({"timeout_s": float("inf")}, r"timeout_s must be positive and finite, got inf"),
        ({"memory_mb": 10}, r"memory_mb must be at least 64, .* got 10"),
        ({"max_output_chars": 0}, r"max_output_chars must be positive, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PythonTool(**options)
