"""The control socket: several clients, hostile ones among them, and who may be one at all."""

import json
import os
import socket
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from outboard.errors import ConnectionLost, Fault, PeerTimeout, RemoteError, SetupError
from outboard.operation import ControlClient
from outboard.operation.control.rpc import BUSY, MOST_LINE, encoded, failure
from outboard.operation.control.server import MOST_CLIENTS
from tests.operation.conftest import Ask, Run, document


def connected(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    # Without a timeout: connecting then waits for its turn.
    connection.connect(str(folder / "control.sock"))
    connection.settimeout(60)
    return connection


def request(method: str = "subsystem.list", id: int = 1) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": method, "id": id}).encode() + b"\n"


def answers(connection: socket.socket, count: int = 1) -> list[Any]:
    with connection.makefile("rb") as lines:
        return [json.loads(lines.readline()) for _ in range(count)]


def test_only_its_owner_may_connect_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    run()
    assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o600


def test_its_mode_can_be_said(run: Run, tmp_path: Path) -> None:
    described = document(tmp_path)
    described["control"]["socket_mode"] = "660"
    run(described)
    assert stat.S_IMODE((tmp_path / "control.sock").stat().st_mode) == 0o660


def test_users_that_are_not_allowed_are_let_go(run: Run, tmp_path: Path) -> None:
    described = document(tmp_path)
    described["control"]["allow_user"] = [str(os.geteuid() + 54321)]
    run(described)
    with ControlClient(tmp_path / "control.sock") as client, pytest.raises(ConnectionLost):
        client.call("subsystem.list")


def test_lines_come_in_any_pieces_and_several_at_once(run: Run, tmp_path: Path) -> None:
    run()
    with connected(tmp_path) as connection:
        text = request(id=1) + b"\n  \n" + request(id=2) + request(id=3)[:-10]
        for byte in text:
            connection.send(bytes([byte]))
        connection.send(request(id=3)[-10:])
        assert [each["id"] for each in answers(connection, 3)] == [1, 2, 3]


def test_a_last_line_without_an_end_is_answered_before_the_connection_ends(run: Run, tmp_path: Path) -> None:
    run()
    with connected(tmp_path) as connection:
        connection.sendall(request(id=1) + request(id=2).strip())
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as lines:
            assert [json.loads(line)["id"] for line in lines] == [1, 2]


def test_a_client_that_is_wrong_goes_on_being_answered(run: Run, tmp_path: Path) -> None:
    run()
    with connected(tmp_path) as connection:
        connection.sendall(b"\xff{]\n" + request())
        first, second = answers(connection, 2)
        assert (first["error"]["code"], second["result"]) == (-32700, ["main"])


def test_a_line_without_an_end_is_refused_at_its_limit(run: Run, tmp_path: Path) -> None:
    run()
    with connected(tmp_path) as connection, connected(tmp_path) as other:
        with suppress(OSError):  # it is let go while it goes on
            connection.sendall(b" " * (4 * MOST_LINE))
        (refused,) = answers(connection)
        assert refused["error"]["code"] == -32600
        other.sendall(request())
        assert answers(other)[0]["result"] == ["main"]


def test_a_client_that_takes_no_answers_gets_no_more_and_hurts_nobody(run: Run, tmp_path: Path) -> None:
    run()
    with connected(tmp_path) as greedy, connected(tmp_path) as other:
        greedy.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += greedy.send(request("rpc.discover") * 100)
        assert sent < 64 << 20, "it is read from for ever"
        other.sendall(request())
        assert answers(other)[0]["result"] == ["main"]


def test_there_are_so_many_clients_and_no_more(run: Run, tmp_path: Path) -> None:
    run()
    clients = [connected(tmp_path) for _ in range(MOST_CLIENTS)]
    for client in clients:
        client.sendall(request())
        assert answers(client)[0]["result"] == ["main"]
    with connected(tmp_path) as one_more:
        assert "clients already" in answers(one_more)[0]["error"]["message"]
        assert one_more.recv(1) == b""
    clients.pop().close()
    while True:  # until the server has seen it go
        with connected(tmp_path) as one_more:
            one_more.sendall(request())
            if "result" in answers(one_more)[0]:
                break
    for client in clients:
        client.close()


def test_clients_that_vanish_in_the_middle_leave_nothing(run: Run, tmp_path: Path) -> None:
    run()
    for _ in range(50):
        with connected(tmp_path) as connection:
            connection.sendall(request("rpc.discover") * 20 + request()[:7])


def test_many_clients_are_answered_at_once(run: Run, tmp_path: Path) -> None:
    run()
    ended: list[int] = []

    def use(number: int) -> None:
        with ControlClient(tmp_path / "control.sock") as client:
            for _ in range(20):
                space = client.call("namespace.add", backend="ram:1M")
                client.call("namespace.remove", nsid=space["nsid"])
        ended.append(number)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ended) == list(range(8))


def test_a_dead_services_socket_is_replaced_and_a_live_ones_is_not(run: Run, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))
        dead.listen()
    run()
    other = document(tmp_path)
    del other["subsystem"]["main"]["controller"][1]
    other["subsystem"]["main"]["controller"][0]["socket"] = str(tmp_path / "other.sock")
    with pytest.raises(SetupError, match="another server listens on"):
        run(other)
    assert not (tmp_path / "other.sock").exists()
    with ControlClient(tmp_path / "control.sock") as client:
        assert client.call("subsystem.list") == ["main"]


def test_the_client_says_what_the_server_refused_and_whose_fault_it_is(ask: Ask) -> None:
    with pytest.raises(RemoteError) as refused:
        ask("namespace.remove", nsid=9)
    assert refused.value.sentence == "there is no namespace 9 in main: there is 1, 2"
    assert refused.value.fault is Fault.CALLER
    with pytest.raises(RemoteError) as refused:
        ask("namespace.add", backend="/nowhere/disk.img")
    assert refused.value.fault is Fault.MACHINE


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_a_name_that_no_file_and_no_user_can_have_is_refused(ask: Ask, tmp_path: Path, name: str) -> None:
    for method, params in (
        ("namespace.add", {"backend": f"./{name},size=1M"}),
        ("controller.add", {"socket": name}),
        ("controller.add", {"socket": str(tmp_path / "c.sock"), "socket_owner": name}),
        ("controller.add", {"socket": str(tmp_path / "c.sock"), "allow_group": [name]}),
    ):
        with pytest.raises(RemoteError, match="it is text, of characters that names can have"):
            ask(method, **params)


def test_the_client_says_so_if_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match="nobody can be asked at"):
        ControlClient(tmp_path / "nowhere.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "mute.sock"))
        listener.listen()
        with ControlClient(tmp_path / "mute.sock", timeout=0.05) as client, pytest.raises(PeerTimeout):
            client.call("subsystem.list")


def test_the_client_hears_why_it_was_let_go_before_it_asked(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "busy.sock"))
        listener.listen()
        with ControlClient(tmp_path / "busy.sock") as client:
            connection, _ = listener.accept()
            connection.sendall(encoded(failure(None, BUSY, "there are 32 clients already")))
            connection.close()
            with pytest.raises(RemoteError, match="32 clients already"):
                client.call("subsystem.list")


def test_the_client_says_so_if_something_else_answers(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "other.sock"))
        listener.listen()
        with ControlClient(tmp_path / "other.sock") as client:
            connection, _ = listener.accept()
            for answer in (b"hello\n", b"[]\n"):
                connection.sendall(answer)
                with pytest.raises(RemoteError, match="is it a control socket"):
                    client.call("subsystem.list")
            connection.close()
            with pytest.raises(ConnectionLost):
                client.call("subsystem.list")
