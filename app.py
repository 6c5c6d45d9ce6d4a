"""Open the page on which all of it is done without a terminal: look, train, segment, correct.

    python app.py
    python app.py --port 8080 --no-browser --out-dir outputs/my_page
    python app.py --host 0.0.0.0 --password        # for others in the same network

It needs two more packages: pip install -r requirements-app.txt. Ctrl-C ends the page; a training
that it started goes on by itself.
"""

import argparse
import getpass
import secrets
import socket
import sys
import threading
import webbrowser
from contextlib import suppress
from pathlib import Path

import common.environment  # noqa: F401 - first, to say what is not installed

from common import cli
from common.errors import UserError
from common.files import lock_folder
from common.packages import install_command

TRIES = 20  # ports that are tried, one after the other


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    cli.add_shared(parser, "--device")
    port = cli.number(int, 1, 65535)
    parser.add_argument("--port", type=port, default=8000, help="of the page; taken: the next one")
    parser.add_argument("--no-browser", action="store_true", help="print the address only")
    what = "address to listen on; another than this machine's own needs --password"
    parser.add_argument("--host", default="127.0.0.1", help=what)
    what = "what others must type; bare: it is asked for"
    parser.add_argument("--password", nargs="?", const="", metavar="TEXT", help=what)
    what = "folder for photographs, corrections, trainings"
    cli.add_shared(parser, "--out-dir", default=Path("outputs/page"), help=what)
    return parser.parse_args()


def listen(host: str, port: int) -> socket.socket:
    """A socket on the first free port from `port` on.

    Raises:
        UserError: there is no such address, or no free port.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise UserError(f"--host {host} is no address of this machine ({error}).") from error
    for number in range(port, min(port + TRIES, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":  # there it would share the port with another program
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, number))
            listener.listen(128)
        except OSError as error:
            listener.close()
            taken = error
            continue
        if number != port:
            print(f"Port {port} is taken or not allowed; the page is on {number}.")
        return listener
    raise UserError(f"No port from {port} on is free at {host} ({taken.strerror}); give --port.")


def choose_password(args: argparse.Namespace, remote: bool) -> str | None:
    """The password that others need, asked for if it is not given."""
    if args.password is None and remote:
        raise UserError(f"--host {args.host} opens the page to others; add --password.")
    if args.password == "":
        args.password = getpass.getpass("Password for the page: ")
    if args.password is not None and len(args.password) < 8:
        raise UserError("--password needs at least 8 letters.")
    return args.password


def main() -> int:
    args = parse_args()
    try:
        import uvicorn

        from page.desk import Desk
        from page.guard import is_loopback
        from page.server import make_app
    except ImportError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        install = install_command("-r requirements-app.txt")
        raise UserError(f"The page needs: {install}") from error
    cli.check_device_name(args.device)  # here, not when the first photograph is segmented
    remote = not is_loopback(args.host)
    password = choose_password(args, remote)
    with lock_folder(args.out_dir):
        # Whoever sits elsewhere names no folder of this machine beside those for data.
        roots = [Path("input")] if remote else None
        desk = Desk(args.out_dir, roots, args.device, args.debug)
        token = secrets.token_urlsafe(24)
        listener = listen(args.host, args.port)
        port = listener.getsockname()[1]
        host = "127.0.0.1" if args.host in ("0.0.0.0", "::") else args.host
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/#{token}"
        app = make_app(desk, token, port=port, remote=remote, password=password)
        print(f"The page is open at {address}\nCtrl-C ends it.", flush=True)
        if not args.no_browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        # Of an error that nobody foresaw the browser gets the sentence.
        options = {"log_level": "error" if args.debug else "critical", "server_header": False}
        limits = {"limit_concurrency": 200, "timeout_graceful_shutdown": 10}
        try:
            with suppress(KeyboardInterrupt):
                uvicorn.Server(uvicorn.Config(app, **options, **limits)).run(sockets=[listener])
        finally:
            desk.worker.close()
        # Not before: a training that was still prepared is not begun any more.
        goes_on = "; the training goes on" if desk.trainings.at_work() else ""
        print(f"\nThe page is closed{goes_on}.")
    return 0


if __name__ == "__main__":
    cli.run(main)
