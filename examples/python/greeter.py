"""Serves greeter/greet, calls it once, and goes on until Ctrl-C or TERM: python3 greeter.py [RUN_DIR]"""

import sys

import middlecon

with middlecon.connect(sys.argv[1] if len(sys.argv) > 1 else None) as node:

    def greet(call: middlecon.Call) -> bytes:
        if not call.body:
            raise middlecon.Failure(1, "whom shall I greet?")
        return b"hello " + call.body

    node.serve("greeter", {"greet": greet})
    try:
        print(node.service("greeter").call("greet", b"world", budget=2.0).decode(), flush=True)
    except middlecon.NotExecuted as error:
        sys.exit(f"not done; trying again is safe: {error}")
    except middlecon.OutcomeUnknown as error:
        sys.exit(f"nobody knows: {error}")
    node.run()
