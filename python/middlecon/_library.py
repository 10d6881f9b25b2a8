"""The shared library: where it is, and what its functions take. As `middlecon.h` says."""

import ctypes
import os
from ctypes import POINTER, c_bool, c_char_p, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from pathlib import Path

ABI_VERSION = 1

HANDLE = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_void_p)
RELEASE = ctypes.CFUNCTYPE(None, c_void_p)
RUN = ctypes.CFUNCTYPE(None, c_void_p)


class ServeOptions(ctypes.Structure):
    _fields_ = [("slots", c_uint16), ("credit", c_uint16), ("reentrancy", c_uint32)]


class Method(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("handler", HANDLE), ("user_data", c_void_p), ("release", RELEASE)]


_OUT = POINTER(c_void_p)
_FUNCTIONS = {
    "mc_connect": (c_uint32, [c_char_p, _OUT, _OUT]),
    "mc_node_free": (None, [c_void_p]),
    "mc_service_open": (c_uint32, [c_void_p, c_char_p, _OUT, _OUT]),
    "mc_service_free": (None, [c_void_p]),
    "mc_call": (c_uint32, [c_void_p, c_char_p, c_char_p, c_size_t, c_uint64, c_uint32, _OUT, _OUT]),
    "mc_reply_data": (c_void_p, [c_void_p]),
    "mc_reply_len": (c_size_t, [c_void_p]),
    "mc_reply_free": (None, [c_void_p]),
    "mc_error_cause": (c_uint32, [c_void_p]),
    "mc_error_code": (c_uint32, [c_void_p]),
    "mc_error_retry_after_ms": (c_int64, [c_void_p]),
    "mc_error_message": (c_char_p, [c_void_p]),
    "mc_error_text": (c_char_p, [c_void_p]),
    "mc_error_path": (c_char_p, [c_void_p]),
    "mc_error_free": (None, [c_void_p]),
    "mc_cause_name": (c_char_p, [c_uint32]),
    "mc_serve": (c_uint32, [c_void_p, c_char_p, POINTER(ServeOptions), POINTER(Method), c_size_t, _OUT, _OUT]),
    "mc_drain": (c_bool, [c_void_p, c_uint64]),
    "mc_server_free": (None, [c_void_p]),
    "mc_request_method": (c_char_p, [c_void_p]),
    "mc_request_peer": (c_char_p, [c_void_p]),
    "mc_request_trace": (c_char_p, [c_void_p]),
    "mc_request_data": (c_void_p, [c_void_p]),
    "mc_request_len": (c_size_t, [c_void_p]),
    "mc_request_left_ms": (c_uint64, [c_void_p]),
    "mc_request_is_over": (c_bool, [c_void_p]),
    "mc_answer_reply": (c_uint32, [c_void_p, c_char_p, c_size_t]),
    "mc_answer_fail": (c_uint32, [c_void_p, c_uint32, c_char_p]),
    "mc_answer_crash": (c_uint32, [c_void_p, c_char_p]),
    "mc_context_current": (c_void_p, []),
    "mc_context_run": (None, [c_void_p, RUN, c_void_p]),
    "mc_context_free": (None, [c_void_p]),
}


def load() -> ctypes.CDLL:
    """The library that MIDDLECON_LIBRARY names, else that of this package, else that of the system."""
    named = os.environ.get("MIDDLECON_LIBRARY")
    own = Path(__file__).with_name("libmiddlecon.so")
    path = named or (str(own) if own.exists() else f"libmiddlecon.so.{ABI_VERSION}")
    try:
        library = ctypes.CDLL(path)
        library.mc_abi_version.restype = c_uint32
        version = library.mc_abi_version()
    except (OSError, AttributeError) as error:
        raise ImportError(
            f"cannot use the library {path}: {error}; install it with `make install`, or name it "
            "with MIDDLECON_LIBRARY"
        ) from error
    if version != ABI_VERSION:
        raise ImportError(f"{path} has version {version} of the interface, and this needs {ABI_VERSION}")
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
