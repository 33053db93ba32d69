"""``appo view RUN``: the trees of a run in a browser."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from appo.commands.view.run import Run
from appo.commands.view.server import ViewServer
from appo.commands.view.write import write_page


def view(
    run: Path,
    against: Path | None = None,
    out: Path | None = None,
    policy: str | None = None,
    port: int = 0,
    browser: bool = True,
) -> str:
    """Shows the trajectories of a run in a browser and follows it while it trains, until Ctrl-C.

    Args:
        run: folder of an ``appo fit`` or ``appo test``.
        against: folder of another run, which is shown beside it. `null`: none.
        out: writes a page that opens from disk, such as ``view.html``, instead of serving one. `null`: serves.
        policy: folder or name of the policy whose tokenizer reads the tokens. `null`: that of the run.
        port: on this machine's loopback address. 0: a free one.
        browser: opens it.

    Returns:
        What there is to say at the end.

    Raises:
        FileNotFoundError: if a folder is none of a run with trajectories.
        ValueError: if the port is none, or taken.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port must lie between 0 and 65535, got {port}")
    runs = [Run(folder, policy) for folder in (run, against) if folder is not None]
    if out is not None:
        return f"view: {write_page(runs, out)}"
    try:
        server = ViewServer(runs, port)
    except OSError as error:
        raise ValueError(f"port must be free, got {port}: {error.strerror}") from error
    # Read before the browser asks, which then has a picture at once.
    for each in runs:
        each.index(each.last_iteration().key)
    sys.stdout.write(f"{server.url}\nCtrl-C ends it\n")
    sys.stdout.flush()
    if browser:
        webbrowser.open(server.url)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return ""
    finally:
        server.server_close()
    return ""
