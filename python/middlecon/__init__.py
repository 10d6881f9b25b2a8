"""Synchronous calls by name, between processes of one host or across the world, that tell the truth.

    import middlecon

    with middlecon.connect() as node:
        reply = node.service("greeter").call("greet", b"world", budget=2.0)

A call that has no reply raises one of three: `CalleeError` (it ran and said no), `NotExecuted` (trying again
is safe) or `OutcomeUnknown` (it may have run; look at what it changes first).

Calls block their thread, and let other threads run meanwhile. Ctrl-C is noticed when the call is over.
Connect after a fork, never before.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import json
import logging
import os
import signal
import threading
import time
import weakref
from typing import Any, Callable, Dict, List, Mapping, Optional, Union, overload

from . import _library as _c

__all__ = [
    "CallError", "CalleeError", "NotExecuted", "OutcomeUnknown", "Failure", "Call", "Context", "Node",
    "Server", "Service", "connect", "json_bytes",
]

_log = logging.getLogger("middlecon")
_lib = _c.load()

Body = Union[bytes, bytearray, memoryview, str, None]
Handler = Callable[["Call"], Body]

# The code of a failure that comes of a call that the handler made: MC_CODE_NESTED.
CODE_NESTED = 0xFFFFFE


class CallError(Exception):
    """There is no reply. Which of its three kinds it is says what may have happened."""

    def __init__(self, text: str, *, message: str = "", cause: str = "", code: int = 0,
                 retry_after: Optional[float] = None, path: Optional[List[str]] = None) -> None:
        super().__init__(text)
        #: The callee's words, or what is said beside the cause; may be empty.
        self.message = message
        #: Why, as `docs/CALLS.md` lists it: "BUSY", "NO_SUCH"; empty of a `CalleeError`.
        self.cause = cause
        #: The callee's own code, of a `CalleeError`.
        self.code = code
        #: After how many seconds trying again is worth it, if somebody said so.
        self.retry_after = retry_after
        #: Of a "CYCLE": the services that the call came through.
        self.path = path or []


class CalleeError(CallError):
    """The callee ran and said no, with a code and words of its own. Trying again asks it again."""


class NotExecuted(CallError):
    """It did not run and will not. Trying again, also elsewhere, is safe."""


class OutcomeUnknown(CallError):
    """It may have run, or may run still. Look at what it changes before you try again."""


class Failure(Exception):
    """Raised by a handler to say no, with a code below 2**24 and words for people."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        if not 0 <= code < 1 << 24:
            raise ValueError("the code of a failure is below 2**24")
        self.code = code
        self.message = message


_KINDS = {1: CalleeError, 2: NotExecuted, 3: OutcomeUnknown}


def _raise(outcome: int, error: ctypes.c_void_p) -> None:
    """Raises what an outcome is, and frees its error."""
    if outcome == 0:
        return
    try:
        text = _lib.mc_error_text(error).decode()
        if outcome not in _KINDS:
            raise ValueError(text)
        retry_after_ms = _lib.mc_error_retry_after_ms(error)
        raise _KINDS[outcome](
            text,
            message=_lib.mc_error_message(error).decode(),
            cause=_lib.mc_cause_name(_lib.mc_error_cause(error)).decode(),
            code=_lib.mc_error_code(error),
            retry_after=None if retry_after_ms < 0 else retry_after_ms / 1000,
            path=_lib.mc_error_path(error).decode().split(),
        )
    finally:
        _lib.mc_error_free(error)


def _bytes(body: Body) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise TypeError(f"a body is bytes, a text or None, and this is {type(body).__name__}")


def _name(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a name has no NUL")
    return text.encode("utf-8", "surrogateescape")


def json_bytes(value: Any) -> bytes:
    """A value as JSON, for a body or a reply."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class _Handle:
    """A handle of the library. Threads may use it while another closes it: whoever is the last one frees it.

        with handle as pointer:
            _lib.mc_call(pointer, ...)
    """

    def __init__(self, pointer: ctypes.c_void_p, free: Callable[[ctypes.c_void_p], None]) -> None:
        self._pointer, self._free = pointer, free
        self._lock = threading.Lock()
        self._users = 0
        self._is_closed = False

    def __enter__(self) -> ctypes.c_void_p:
        with self._lock:
            if self._is_closed:
                raise ValueError("the connection to the node is closed")
            self._users += 1
        return self._pointer

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            is_last = self._is_closed and self._users == 0
        if is_last:
            self._free(self._pointer)

    def close(self) -> None:
        with self._lock:
            is_last = not self._is_closed and self._users == 0
            self._is_closed = True
        if is_last:
            self._free(self._pointer)


def connect(run_dir: Union[str, "os.PathLike[str]", None] = None) -> "Node":
    """Connects to the node with this run directory; without one, to that of the own user, else root's.

    Raises `NotExecuted` with the cause "NO_NODE" if none answers.
    """
    return Node(run_dir)


class Node:
    """A connection to the node of this host. One for a program is enough; it outlives the node's restarts.

    As a context manager it ends its servers at the end.
    """

    def __init__(self, run_dir: Union[str, "os.PathLike[str]", None] = None) -> None:
        handle, error = ctypes.c_void_p(), ctypes.c_void_p()
        where = None if run_dir is None else _name(os.fspath(run_dir))
        _raise(_lib.mc_connect(where, ctypes.byref(handle), ctypes.byref(error)), error)
        self._handle = _Handle(handle, _lib.mc_node_free)
        weakref.finalize(self, self._handle.close)
        # Held while what belongs to it is added or taken: what is added late is not forgotten by `close`.
        self._lock = threading.Lock()
        self._is_closed = False
        self._services: Dict[str, Service] = {}
        self._servers: List[Server] = []

    def service(self, name: str) -> "Service":
        """A service by its name. Nothing is asked yet: the first call opens a connection."""
        with self._lock:
            service = self._services.get(name)
            if service is None:
                service = self._services[name] = Service(self, name)
            return service

    @overload
    def serve(self, name: str, methods: Mapping[Optional[str], Handler], *, slots: int = ...,
              credit: int = ..., reentrancy: str = ...) -> "Server": ...

    @overload
    def serve(self, name: str, *, slots: int = ..., credit: int = ...,
              reentrancy: str = ...) -> Callable[[Handler], "Server"]: ...

    def serve(self, name: str, methods: Optional[Mapping[Optional[str], Handler]] = None, *,
              slots: int = 64, credit: int = 64, reentrancy: str = "reject") -> Any:
        """Serves a service, from now on, with a handler for each method; that of `None` is for all others.

        Without `methods` it decorates the function that handles all of them, which becomes the `Server`:

            @node.serve("greeter")
            def greeter(call):
                return b"hello " + call.body

        A handler gets a `Call`, on any thread, many at once, and returns the reply. It says no by raising
        `Failure`. Any other exception is a crash: its caller is told `OutcomeUnknown` with "PANIC".
        `reentrancy` of calls that came through this very server before: "reject", "reenter" or "allow".
        """
        if methods is not None:
            return Server(self, name, methods, slots, credit, reentrancy)
        return lambda handler: Server(self, name, {None: handler}, slots, credit, reentrancy)

    def run(self, drain: float = 10.0) -> None:
        """Serves until Ctrl-C or TERM, then finishes the calls at work for `drain` seconds at most. For the
        main thread."""
        stop = threading.Event()
        former = signal.signal(signal.SIGTERM, lambda *_: stop.set())
        try:
            stop.wait()
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, former)
            with self._lock:
                servers = list(self._servers)
            for server in servers:
                server.drain(drain)
            self.close()

    def close(self) -> None:
        """Ends its servers, and the connection. Twice does no harm, nor do calls of other threads: those under
        way come to their end, later ones raise `ValueError`."""
        with self._lock:
            self._is_closed = True
            servers, services = list(self._servers), list(self._services.values())
        for server in servers:
            server.close()
        for service in services:
            service._handle.close()
        self._handle.close()

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Service:
    """A service, to be called, also by many threads at once. Made by `Node.service`."""

    def __init__(self, node: Node, name: str) -> None:
        handle, error = ctypes.c_void_p(), ctypes.c_void_p()
        with node._handle as opener:
            outcome = _lib.mc_service_open(opener, _name(name), ctypes.byref(handle), ctypes.byref(error))
        _raise(outcome, error)
        self.name = name
        self._handle = _Handle(handle, _lib.mc_service_free)
        weakref.finalize(self, self._handle.close)

    def call(self, method: str, body: Body = None, *, budget: Optional[float] = None,
             wait: bool = False) -> bytes:
        """Calls a method and waits for its reply, `budget` seconds at most.

        Without a budget: what is left of that of the call which this thread handles, or 30 s where it
        handles none. With `wait`, it waits for a place where all are taken, instead of "BUSY".
        """
        if budget is not None and not 0 < budget <= 86_400:
            raise ValueError("a budget is above 0 and at most a day, in seconds")
        budget_ms = 0 if budget is None else max(1, int(budget * 1000))
        data = _bytes(body)
        reply, error = ctypes.c_void_p(), ctypes.c_void_p()
        with self._handle as handle:
            outcome = _lib.mc_call(handle, _name(method), data, len(data), budget_ms, int(wait),
                                   ctypes.byref(reply), ctypes.byref(error))
        _raise(outcome, error)
        try:
            return ctypes.string_at(_lib.mc_reply_data(reply), _lib.mc_reply_len(reply))
        finally:
            _lib.mc_reply_free(reply)

    def call_json(self, method: str, value: Any = None, *, budget: Optional[float] = None,
                  wait: bool = False) -> Any:
        """The same with JSON both ways."""
        return json.loads(self.call(method, json_bytes(value), budget=budget, wait=wait))


class Call:
    """A call, as its handler sees it. Good until the handler returns, on the handler's thread."""

    def __init__(self, request: int) -> None:
        self._request: Optional[int] = request
        #: Which method.
        self.method: str = _lib.mc_request_method(request).decode()
        #: What was sent.
        self.body: bytes = ctypes.string_at(_lib.mc_request_data(request), _lib.mc_request_len(request))
        #: Who calls, as the nodes say: "tokyo/web-1/user/1000" or "tokyo/web-1/service/web".
        self.peer: str = _lib.mc_request_peer(request).decode()
        #: The trace that the call is part of.
        self.trace: str = _lib.mc_request_trace(request).decode()

    def json(self) -> Any:
        """The body, which is JSON. If it is not, the caller is told so: a `Failure` with code 400."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Failure(400, f"the body is no JSON: {error}") from None

    @property
    def left(self) -> float:
        """For how many seconds the caller still waits; 0 when the handler is over."""
        return _lib.mc_request_left_ms(self._request) / 1000

    @property
    def is_over(self) -> bool:
        """Whether nobody waits any more: ask it in work that takes long."""
        return bool(_lib.mc_request_is_over(self._request))


class Context:
    """What nested calls inherit: budget, trace, the way they came. Take it to threads of your own."""

    def __init__(self, handle: int) -> None:
        self._handle = _Handle(ctypes.c_void_p(handle), _lib.mc_context_free)
        weakref.finalize(self, self._handle.close)

    @staticmethod
    def current() -> Optional["Context"]:
        """That of the call which this thread handles, if it handles one."""
        handle = _lib.mc_context_current()
        return Context(handle) if handle else None

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function on this thread, for the call above."""
        result: List[Any] = []
        raised: List[BaseException] = []

        def run(_: Any) -> None:
            try:
                result.append(function(*args, **kwargs))
            except BaseException as error:  # It goes on below, on the other side of C.
                raised.append(error)

        with self._handle as handle:
            _lib.mc_context_run(handle, _c.RUN(run), None)
        if raised:
            raise raised[0]
        return result[0]


class Server:
    """A server at work. Made by `Node.serve`; it serves until it or its node is closed, or the program ends."""

    def __init__(self, node: Node, name: str, methods: Mapping[Optional[str], Handler], slots: int,
                 credit: int, reentrancy: str) -> None:
        kinds = {"reject": 0, "reenter": 1, "allow": 2}
        if reentrancy not in kinds:
            raise ValueError("reentrancy is reject, reenter or allow")
        for what, number in (("slots", slots), ("credit", credit)):
            if not 1 <= number <= 4096:
                raise ValueError(f"{what} is 1 to 4096")
        options = _c.ServeOptions(slots, credit, kinds[reentrancy])
        named = [(None if method is None else _name(method), handler)
                 for method, handler in methods.items()]
        array = (_c.Method * len(named))()
        for at, (method, handler) in enumerate(named):
            key = next(_keys)
            _handlers[key] = handler
            array[at] = _c.Method(method, _handle_call, key, _release)
        handle, error = ctypes.c_void_p(), ctypes.c_void_p()
        with node._handle as opener:
            outcome = _lib.mc_serve(opener, _name(name), ctypes.byref(options), array, len(named),
                                    ctypes.byref(handle), ctypes.byref(error))
        _raise(outcome, error)
        self.name = name
        self._handle = _Handle(handle, _lib.mc_server_free)
        self._node = weakref.ref(node)
        weakref.finalize(self, self._handle.close)
        with node._lock:
            is_late = node._is_closed
            if not is_late:
                node._servers.append(self)
        if is_late:
            self._handle.close()
            raise ValueError("the connection to the node is closed")

    def drain(self, within: float = 10.0) -> bool:
        """Takes no new calls and finishes those at work. False if some were not over in time."""
        try:
            with self._handle as handle:
                return bool(_lib.mc_drain(handle, int(within * 1000)))
        except ValueError:
            return True  # It was closed.

    def close(self) -> None:
        """Ends it; calls at work are finished for a second at most."""
        self._handle.close()
        node = self._node()
        if node is not None:
            with node._lock:
                if self in node._servers:
                    node._servers.remove(self)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Calls at work are given a second when a server is ended, and their threads as much again.
_RELEASE_WAIT = 2.0

# C holds keys, not objects: what it calls late finds nothing here instead of freed memory.
_handlers: Dict[int, Handler] = {}
_keys = itertools.count(1)


def _text(text: str) -> bytes:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace")


@_c.HANDLE
def _handle_call(key: Optional[int], request: int, answer: int) -> None:
    try:
        call = Call(request)
        try:
            body = _bytes(_handlers[key or 0](call))
            _lib.mc_answer_reply(answer, body, len(body))
        finally:
            call._request = None
    except Failure as failure:
        _lib.mc_answer_fail(answer, failure.code, _text(failure.message))
    except CallError as error:
        _lib.mc_answer_fail(answer, CODE_NESTED, _text(str(error)))
    except BaseException as error:  # Nothing may pass through C.
        _lib.mc_answer_crash(answer, _text(f"{type(error).__name__}: {error}"))
        _log.exception("a handler crashed")


@atexit.register
def _wait_for_releases() -> None:
    """Runs after all servers were ended, which lets their handlers go on threads of their own: one that asks
    for the interpreter when it is gone takes the process with it."""
    until = time.monotonic() + _RELEASE_WAIT
    while _handlers and time.monotonic() < until:
        time.sleep(0.002)
    # The last one is still on its way back.
    time.sleep(0.01)


@_c.RELEASE
def _release(key: Optional[int]) -> None:
    _handlers.pop(key or 0, None)
