"""Checks the package through the node whose run directory is the argument, with the standard library alone."""

import logging
import sys
import threading
import time
import unittest
import unittest.mock

import middlecon

RUN_DIR = sys.argv.pop()
logging.getLogger("middlecon").setLevel(logging.CRITICAL)  # Handlers crash on purpose here.


class Calls(unittest.TestCase):
    def setUp(self):
        self.node = middlecon.connect(RUN_DIR)
        self.addCleanup(self.node.close)

    def fails(self, kind, cause, function, *args, **kwargs):
        with self.assertRaises(kind) as raised:
            function(*args, **kwargs)
        self.assertEqual(raised.exception.cause, cause)
        self.assertTrue(str(raised.exception))
        return raised.exception

    def test_bytes_come_back_as_they_are(self):
        server = self.node.serve("py-echo")(lambda call: call.body)
        self.assertIsInstance(server, middlecon.Server)
        echo = self.node.service("py-echo")
        for body in (b"", b"\0\xff\0", bytes(range(256)) * 9000):
            self.assertEqual(echo.call("any.name", body), body)
        self.assertEqual(echo.call("a", "h\u00e9llo"), "h\u00e9llo".encode())
        self.assertEqual(echo.call("a", bytearray(b"x"), budget=60.0, wait=True), b"x")
        self.assertIs(self.node.service("py-echo"), echo)

    def test_every_outcome_is_an_exception_of_its_own(self):
        over, told = threading.Event(), threading.Event()

        def no(call):
            raise middlecon.Failure(7, "not\0today")

        def work(call):
            while not call.is_over:
                time.sleep(0.001)
            over.set()
            told.wait(20)  # A reply that comes in the last moment is a reply.

        def crash(call):
            raise RuntimeError("on purpose")

        methods = {"no": no, "work": work, "crash": crash, "odd": lambda call: 7}
        server = self.node.serve("py-kv", methods, slots=2)
        kv = self.node.service("py-kv")
        error = self.fails(middlecon.CalleeError, "", kv.call, "no")
        self.assertEqual((error.code, error.message), (7, "not\ufffdtoday"))
        self.fails(middlecon.NotExecuted, "NO_SUCH", kv.call, "other")
        self.fails(middlecon.NotExecuted, "NO_SUCH", self.node.service("py-nobody").call, "a")
        self.fails(middlecon.OutcomeUnknown, "DEADLINE", kv.call, "work", budget=0.05)
        told.set()
        self.assertTrue(over.wait(20))
        error = self.fails(middlecon.OutcomeUnknown, "PANIC", kv.call, "crash")
        self.assertEqual(error.message, "RuntimeError: on purpose")
        self.fails(middlecon.OutcomeUnknown, "PANIC", kv.call, "odd")
        self.assertTrue(server.drain())
        self.fails(middlecon.NotExecuted, "DRAINING", kv.call, "no")
        self.fails(middlecon.NotExecuted, "NO_NODE", middlecon.connect, "/nowhere")

    def test_nested_calls_are_made_for_the_call_above(self):
        self.node.serve("py-inner")(lambda call: f"{call.trace} {call.peer}")
        inner = self.node.service("py-inner")

        def outer(call):
            traces = [inner.call("a").decode().split()]
            context = middlecon.Context.current()
            thread = threading.Thread(
                target=lambda: traces.append(context.run(inner.call, "a").decode().split()))
            thread.start()
            thread.join()
            assert 0 < call.left <= 20
            return middlecon.json_bytes([call.trace, traces])

        self.node.serve("py-outer", {
            "go": outer,
            "circle": lambda call: self.node.service("py-outer").call("go"),
        })
        outer_service = self.node.service("py-outer")
        trace, traces = outer_service.call_json("go", budget=20)
        self.assertEqual(traces, [[trace, "tokyo/a/service/py-outer"]] * 2)
        error = self.fails(middlecon.CalleeError, "", outer_service.call, "circle")
        self.assertEqual(error.code, middlecon.CODE_NESTED)
        self.assertIn("CYCLE", error.message)
        self.assertIsNone(middlecon.Context.current())

    def test_json(self):
        self.node.serve("py-sum")(lambda call: middlecon.json_bytes(sum(call.json())))
        self.assertEqual(self.node.service("py-sum").call_json("sum", [1, 2, 3]), 6)
        error = self.fails(middlecon.CalleeError, "", self.node.service("py-sum").call, "sum", b"{")
        self.assertEqual(error.code, 400)

    def test_bad_arguments_are_errors(self):
        for name in ("", "No", "a b", "a\0", "\udcff"):
            with self.assertRaises(ValueError):
                self.node.service(name)
            with self.assertRaises(ValueError):
                self.node.serve(name, {"a": lambda call: None})
        service = self.node.service("py-a")
        for budget in (0, -1, 86_401, float("nan")):
            with self.assertRaises(ValueError):
                service.call("a", budget=budget)
        with self.assertRaises(TypeError):
            service.call("a", 7)
        with self.assertRaises(ValueError):
            self.node.serve("py-a", {})
        self.node.close()
        with self.assertRaises(ValueError):
            service.call("a")

    def test_a_node_is_closed_while_threads_call(self):
        go_on = threading.Event()
        inside = threading.Semaphore(0)

        def work(call):
            inside.release()
            assert go_on.wait(20)
            return call.body

        self.node.serve("py-slow", {None: work}, slots=16)
        freed = []
        free = middlecon._lib.mc_service_free

        def free_and_note(handle):
            freed.append(handle)
            free(handle)

        caller = middlecon.connect(RUN_DIR)
        with unittest.mock.patch.object(middlecon._lib, "mc_service_free", free_and_note):
            slow = caller.service("py-slow")
        replies = []
        threads = [threading.Thread(target=lambda: replies.append(slow.call("a", b"x"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for _ in threads:
            self.assertTrue(inside.acquire(timeout=20))
        caller.close()
        self.assertEqual(freed, [], "they still use it")
        with self.assertRaises(ValueError):
            slow.call("a")
        with self.assertRaises(ValueError):
            caller.service("py-other")
        go_on.set()
        for thread in threads:
            thread.join(20)
        self.assertEqual((replies, len(freed)), ([b"x"] * 8, 1))

    def test_threads_that_call_while_nodes_come_and_go_are_told_the_truth(self):
        self.node.serve("py-echo")(lambda call: call.body)
        wrong = []

        def call(service):
            try:
                while True:
                    if service.call("a", b"x") != b"x":
                        wrong.append("the reply")
            except ValueError:
                pass  # It was closed.
            except BaseException as error:
                wrong.append(error)

        for _ in range(20):
            caller = middlecon.connect(RUN_DIR)
            echo = caller.service("py-echo")
            echo.call("a", b"x")
            threads = [threading.Thread(target=call, args=(echo,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            caller.close()
            for thread in threads:
                thread.join(20)
        self.assertEqual(wrong, [])

    def test_a_handler_is_let_go_with_its_server(self):
        before = len(middlecon._handlers)
        server = self.node.serve("py-gone")(lambda call: call.body)
        self.assertEqual(self.node.service("py-gone").call("a", b"x"), b"x")
        server.close()
        began = time.monotonic()
        while len(middlecon._handlers) > before and time.monotonic() - began < 20:
            time.sleep(0.002)
        self.assertEqual(len(middlecon._handlers), before)


if __name__ == "__main__":
    unittest.main()
