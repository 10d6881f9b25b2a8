/* Synchronous calls by name that tell the truth about their outcome: Kumonosu's middlecon, for C.
 *
 * Made by cbindgen from crates/ffi; change it there. Link with -lmiddlecon. docs/CALLS.md says what is
 * promised, and has examples.
 *
 * Handles are freed by the function of their kind, in any order, and null is allowed there. Connections,
 * services, servers, contexts, replies and errors may be used from many threads at once; requests and
 * answers only on the thread of their handler. A function that takes `error` writes an error there, which is to
 * be freed, or null where there is none; pass null if the outcome is enough. Texts are UTF-8 and end with a
 * NUL. What is written to is written also where the function fails: null then.
 */


#ifndef MIDDLECON_H
#define MIDDLECON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The version of this interface. Programs are linked to the library of one version, libmiddlecon.so.1;
 * within it, functions and constants are added and none is changed.
 */
#define MC_ABI_VERSION 1

/**
 * For mc_call: where all places are taken, wait for one within the budget; else that is MC_CAUSE_BUSY.
 */
#define MC_WAIT_FOR_PLACE 1

/**
 * For mc_serve_options: a call that came through this instance before is MC_CAUSE_CYCLE.
 */
#define MC_REENTRANCY_REJECT 0

/**
 * For mc_serve_options: a call that came through this instance before runs at once, in the place of the
 * call above, which waits for it.
 */
#define MC_REENTRANCY_REENTER 1

/**
 * For mc_serve_options: a call that came through this instance before is a call as any other.
 */
#define MC_REENTRANCY_ALLOW 2

/**
 * For mc_answer_fail: the handler could not do its work because a call of its own did not succeed.
 */
#define MC_CODE_NESTED 16777214

/**
 * How something ended.
 */
enum mc_outcome
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * It is done; of a call, there is a reply.
     */
    MC_OUTCOME_DONE = 0,
    /**
     * The callee ran and said no, with a code and words of its own. Trying again asks it again.
     */
    MC_OUTCOME_FAILED = 1,
    /**
     * It did not run and will not. Trying again, also elsewhere, is safe.
     */
    MC_OUTCOME_NOT_EXECUTED = 2,
    /**
     * It may have run, or may run still. Look at what it changes before you try again.
     */
    MC_OUTCOME_UNKNOWN = 3,
    /**
     * An argument is wrong: null, not UTF-8, no name. Nothing was done.
     */
    MC_OUTCOME_USAGE = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mc_outcome mc_outcome;
#else
typedef uint32_t mc_outcome;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why a call was not executed, or nobody knows whether it was.
 */
enum mc_cause
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * There is none: the callee said no, or an argument is wrong.
     */
    MC_CAUSE_NONE = 0,
    /**
     * All places of the callee are taken.
     */
    MC_CAUSE_BUSY = 1,
    /**
     * No such service, or no such method.
     */
    MC_CAUSE_NO_SUCH = 2,
    /**
     * The instance that was meant has been followed by another.
     */
    MC_CAUSE_STALE = 3,
    /**
     * The caller may not.
     */
    MC_CAUSE_DENIED = 4,
    /**
     * The budget was spent.
     */
    MC_CAUSE_DEADLINE = 5,
    /**
     * The caller, or somebody above it, gave up.
     */
    MC_CAUSE_CANCELLED = 6,
    /**
     * The callee's process ended.
     */
    MC_CAUSE_DIED = 7,
    /**
     * The callee's host fell silent.
     */
    MC_CAUSE_HOST_LOST = 8,
    /**
     * The callee's process stands still: stopped or frozen.
     */
    MC_CAUSE_SUSPENDED = 9,
    /**
     * The way between the two hosts is cut.
     */
    MC_CAUSE_PARTITION = 10,
    /**
     * The call would wait for itself; the error has its path.
     */
    MC_CAUSE_CYCLE = 11,
    /**
     * The chain has more than 16 hops.
     */
    MC_CAUSE_DEPTH = 12,
    /**
     * The callee's handler crashed.
     */
    MC_CAUSE_PANIC = 13,
    /**
     * Above a limit of size.
     */
    MC_CAUSE_TOO_LARGE = 14,
    /**
     * What was sent breaks the protocol.
     */
    MC_CAUSE_MALFORMED = 15,
    /**
     * No node answers on this host.
     */
    MC_CAUSE_NO_NODE = 16,
    /**
     * That instance ends and takes no new calls.
     */
    MC_CAUSE_DRAINING = 17,
    /**
     * This program, its node or its host is at a limit.
     */
    MC_CAUSE_EXHAUSTED = 18,
    /**
     * The connection ended and nobody said why.
     */
    MC_CAUSE_LOST = 19,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum mc_cause mc_cause;
#else
typedef uint32_t mc_cause;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a handler puts its answer. If it puts none, the reply is empty; of several the last counts.
 */
typedef struct mc_answer mc_answer;

/**
 * The context of a call that is being handled: its budget, its trace, the way it came, who waits for it.
 * Calls that a handler makes on its own thread have it by themselves.
 */
typedef struct mc_context mc_context;

/**
 * Why something is not done.
 */
typedef struct mc_error mc_error;

/**
 * A connection to the node of this host.
 */
typedef struct mc_node mc_node;

/**
 * What a callee replied.
 */
typedef struct mc_reply mc_reply;

/**
 * A call that is handled. Good until its handler returns, on the handler's thread.
 */
typedef struct mc_request mc_request;

/**
 * A server at work.
 */
typedef struct mc_server mc_server;

/**
 * A service, to be called. Many threads may use one at once: each call has a connection for itself, and
 * idle connections wait for the next call.
 */
typedef struct mc_service mc_service;

/**
 * What a server is set to. All 0 is the default.
 */
typedef struct mc_serve_options {
    /**
     * Handlers that run at once, 4,096 at most; one more for each hop of a chain is reserved. 0 is 64.
     */
    uint16_t slots;
    /**
     * Calls that may wait for a slot, 4,096 at most; more are MC_CAUSE_BUSY. 0 is 64.
     */
    uint16_t credit;
    /**
     * One of MC_REENTRANCY_*.
     */
    uint32_t reentrancy;
} mc_serve_options;

/**
 * A method of a server.
 */
typedef struct mc_method {
    /**
     * Its name: a-z, 0-9, -, _ and ., at most 63, a letter first. Null is every method without a handler
     * of its own.
     */
    const char *name;
    /**
     * Called for each call, from many threads at once. It must not throw, jump out or end its thread.
     */
    void (*handler)(void*, const struct mc_request*, struct mc_answer*);
    /**
     * Passed to the handler.
     */
    void *user_data;
    /**
     * Called once with `user_data`, from any thread, when the handler will not be called any more; also if
     * mc_serve fails, unless `methods` itself is null. May be null. After mc_server_free, handlers that
     * were not over in time still run: this says when `user_data` may be freed.
     */
    void (*release)(void*);
} mc_method;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library that is loaded; compare it with MC_ABI_VERSION where it is loaded by hand.
 */
uint32_t mc_abi_version(void);

/**
 * Connects to the node with this run directory; to that of the own user, else that of root, if it is
 * null. The connection outlives restarts of the node. One for a program is enough. Connect after fork(),
 * never before: threads are not copied.
 *
 * MC_OUTCOME_NOT_EXECUTED with MC_CAUSE_NO_NODE if none answers.
 *
 * # Safety
 * `run_dir` is null or ends with a NUL; `node` may be written to; `error` is null or may be written to.
 */
mc_outcome mc_connect(const char *run_dir,
                      struct mc_node **node,
                      struct mc_error **error);

/**
 * Frees a connection. Null is allowed. What was made with it stays good, and keeps the connection until
 * it is freed, too.
 *
 * # Safety
 * `node` is null or was given by mc_connect, and is not used again.
 */
void mc_node_free(struct mc_node *node);

/**
 * A service by its name: a-z, 0-9 and -, at most 63, a letter first. Nothing is asked yet: the first
 * call opens a connection.
 *
 * # Safety
 * `node` is null or a connection that is not freed meanwhile; `name` is null or ends with a NUL;
 * `service` may be written to; `error` is null or may be written to.
 */
mc_outcome mc_service_open(const struct mc_node *node,
                           const char *name,
                           struct mc_service **service,
                           struct mc_error **error);

/**
 * Frees a service, and its connections. Null is allowed.
 *
 * # Safety
 * `service` is null or was given by mc_service_open, and is not used again.
 */
void mc_service_free(struct mc_service *service);

/**
 * Calls a method, and waits for its reply for `budget_ms`, a day at most.
 *
 * With 0 for `budget_ms` it may take what is left of the budget of the call that this thread handles, or
 * 30 s where it handles none. What is left there is never exceeded. `flags` is 0 or MC_WAIT_FOR_PLACE.
 * `body` is `body_len` bytes, 1 GiB at most; null if there are none. It is not kept.
 *
 * With MC_OUTCOME_DONE there is a reply, also if it is empty, and no error; else there is an error and no
 * reply. The error says whether trying again is safe.
 *
 * # Safety
 * `service` is null or a service that is not freed meanwhile; `method` is null or ends with a NUL; `body`
 * is null or has `body_len` bytes; `reply` may be written to; `error` is null or may be written to.
 */
mc_outcome mc_call(const struct mc_service *service,
                   const char *method,
                   const uint8_t *body,
                   size_t body_len,
                   uint64_t budget_ms,
                   uint32_t flags,
                   struct mc_reply **reply,
                   struct mc_error **error);

/**
 * The bytes of a reply, which live as long as it does. Never null, but for null.
 *
 * # Safety
 * `reply` is null or was given by mc_call and not freed.
 */
const uint8_t *mc_reply_data(const struct mc_reply *reply);

/**
 * How many bytes a reply has; 0 for null.
 *
 * # Safety
 * `reply` is null or was given by mc_call and not freed.
 */
size_t mc_reply_len(const struct mc_reply *reply);

/**
 * Frees a reply. Null is allowed.
 *
 * # Safety
 * `reply` is null or was given by mc_call, and is not used again.
 */
void mc_reply_free(struct mc_reply *reply);

/**
 * The context that this thread is in, to take it to another; null if it is in none.
 */
struct mc_context *mc_context_current(void);

/**
 * Runs a function on this thread, in a context: calls that it makes are made for the call above. Without a
 * context (null) it is just run. `run` must not throw, jump out or end its thread.
 *
 * # Safety
 * `context` is null or a context that is not freed meanwhile; `run` is null or may be called once with
 * `user_data`.
 */
void mc_context_run(const struct mc_context *context,
                    void (*run)(void*),
                    void *user_data);

/**
 * Frees a context. Null is allowed.
 *
 * # Safety
 * `context` is null or was given by mc_context_current, and is not used again.
 */
void mc_context_free(struct mc_context *context);

/**
 * How it ended; MC_OUTCOME_USAGE for null.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
mc_outcome mc_error_outcome(const struct mc_error *error);

/**
 * Why, if it is not the callee that said no.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
mc_cause mc_error_cause(const struct mc_error *error);

/**
 * The callee's own code, of MC_OUTCOME_FAILED; else 0.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
uint32_t mc_error_code(const struct mc_error *error);

/**
 * After how many milliseconds trying again is worth it; -1 where nobody said.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
int64_t mc_error_retry_after_ms(const struct mc_error *error);

/**
 * The callee's words, or what is said beside the cause; may be empty. It lives as long as the error.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
const char *mc_error_message(const struct mc_error *error);

/**
 * All of it as a sentence for people. It lives as long as the error.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
const char *mc_error_text(const struct mc_error *error);

/**
 * Of MC_CAUSE_CYCLE, the services that the call came through, with blanks between them, ending where it
 * would have begun again; else empty. It lives as long as the error.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
const char *mc_error_path(const struct mc_error *error);

/**
 * Frees an error. Null is allowed.
 *
 * # Safety
 * `error` is null or was given by this library, and is not used again.
 */
void mc_error_free(struct mc_error *error);

/**
 * A cause as people write it: `NO_SUCH`. Empty for none and for numbers that are no cause. It lives for
 * ever.
 */
const char *mc_cause_name(uint32_t cause);

/**
 * Serves a service, from now on, with these handlers. Each connection has a thread; `options` may be null.
 *
 * MC_OUTCOME_NOT_EXECUTED if the node refuses or does not answer, with its cause.
 *
 * # Safety
 * `node` is null or a connection that is not freed meanwhile; `service` is null or ends with a NUL;
 * `options` is null or good to read; `methods` is null or has `methods_len` methods, whose names are null or
 * end with a NUL, and whose functions may be called as their comments say; `server` may be written to;
 * `error` is null or may be written to.
 */
mc_outcome mc_serve(const struct mc_node *node,
                    const char *service,
                    const struct mc_serve_options *options,
                    const struct mc_method *methods,
                    size_t methods_len,
                    struct mc_server **server,
                    struct mc_error **error);

/**
 * Takes no new calls, finishes those at work, and ends. False if some were not over within `within_ms`:
 * their connections are ended, so that their callers learn of it. The server is still to be freed. A
 * handler that drains its own server waits for itself until the time is over.
 *
 * # Safety
 * `server` is null or a server that is not freed meanwhile.
 */
bool mc_drain(const struct mc_server *server,
              uint64_t within_ms);

/**
 * Frees a server. If it was not drained, it is, for a second at most. Null is allowed.
 *
 * # Safety
 * `server` is null or was given by mc_serve, and is not used again.
 */
void mc_server_free(struct mc_server *server);

/**
 * Which method is called; empty for null. It lives as long as the request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const char *mc_request_method(const struct mc_request *request);

/**
 * Who calls, as the nodes say: `tokyo/web-1/user/1000` or `tokyo/web-1/service/web`; empty for null. It
 * lives as long as the request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const char *mc_request_peer(const struct mc_request *request);

/**
 * The trace that the call is part of, 32 hexadecimal digits; empty for null. It lives as long as the
 * request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const char *mc_request_trace(const struct mc_request *request);

/**
 * What was sent, as many bytes as mc_request_len says. They live as long as the request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const uint8_t *mc_request_data(const struct mc_request *request);

/**
 * How many bytes were sent; 0 for null.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
size_t mc_request_len(const struct mc_request *request);

/**
 * For how many milliseconds the caller still waits; 0 for null.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
uint64_t mc_request_left_ms(const struct mc_request *request);

/**
 * Whether nobody waits any more: the caller has gone or given up, or the budget is spent. For handlers that
 * work for long without a call of their own. True for null.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
bool mc_request_is_over(const struct mc_request *request);

/**
 * Replies with a copy of these bytes; null if there are none.
 *
 * # Safety
 * `answer` is null or that of the handler which runs; `body` is null or has `body_len` bytes.
 */
mc_outcome mc_answer_reply(struct mc_answer *answer, const uint8_t *body, size_t body_len);

/**
 * Says no, with a code of the callee's own, below 2^24, and words for people, of which 4 KiB travel.
 *
 * # Safety
 * `answer` is null or that of the handler which runs; `message` is null or ends with a NUL.
 */
mc_outcome mc_answer_fail(struct mc_answer *answer,
                          uint32_t code,
                          const char *message);

/**
 * Says that the handler crashed, if its language can say so: the caller is told MC_OUTCOME_UNKNOWN with
 * MC_CAUSE_PANIC, for nobody knows what it had done by then.
 *
 * # Safety
 * `answer` is null or that of the handler which runs; `message` is null or ends with a NUL.
 */
mc_outcome mc_answer_crash(struct mc_answer *answer,
                           const char *message);

/**
 * How it ended; MC_OUTCOME_USAGE for null.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
mc_outcome mc_error_outcome(const struct mc_error *error);

/**
 * Why, if it is not the callee that said no.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
mc_cause mc_error_cause(const struct mc_error *error);

/**
 * The callee's own code, of MC_OUTCOME_FAILED; else 0.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
uint32_t mc_error_code(const struct mc_error *error);

/**
 * After how many milliseconds trying again is worth it; -1 where nobody said.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
int64_t mc_error_retry_after_ms(const struct mc_error *error);

/**
 * The callee's words, or what is said beside the cause; may be empty. It lives as long as the error.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
const char *mc_error_message(const struct mc_error *error);

/**
 * All of it as a sentence for people. It lives as long as the error.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
const char *mc_error_text(const struct mc_error *error);

/**
 * Of MC_CAUSE_CYCLE, the services that the call came through, with blanks between them, ending where it
 * would have begun again; else empty. It lives as long as the error.
 *
 * # Safety
 * `error` is null or was given by this library and not freed.
 */
const char *mc_error_path(const struct mc_error *error);

/**
 * Frees an error. Null is allowed.
 *
 * # Safety
 * `error` is null or was given by this library, and is not used again.
 */
void mc_error_free(struct mc_error *error);

/**
 * A cause as people write it: `NO_SUCH`. Empty for none and for numbers that are no cause. It lives for
 * ever.
 */
const char *mc_cause_name(uint32_t cause);

/**
 * A service by its name: a-z, 0-9 and -, at most 63, a letter first. Nothing is asked yet: the first
 * call opens a connection.
 *
 * # Safety
 * `node` is null or a connection that is not freed meanwhile; `name` is null or ends with a NUL;
 * `service` may be written to; `error` is null or may be written to.
 */
mc_outcome mc_service_open(const struct mc_node *node,
                           const char *name,
                           struct mc_service **service,
                           struct mc_error **error);

/**
 * Frees a service, and its connections. Null is allowed.
 *
 * # Safety
 * `service` is null or was given by mc_service_open, and is not used again.
 */
void mc_service_free(struct mc_service *service);

/**
 * Calls a method, and waits for its reply for `budget_ms`, a day at most.
 *
 * With 0 for `budget_ms` it may take what is left of the budget of the call that this thread handles, or
 * 30 s where it handles none. What is left there is never exceeded. `flags` is 0 or MC_WAIT_FOR_PLACE.
 * `body` is `body_len` bytes, 1 GiB at most; null if there are none. It is not kept.
 *
 * With MC_OUTCOME_DONE there is a reply, also if it is empty, and no error; else there is an error and no
 * reply. The error says whether trying again is safe.
 *
 * # Safety
 * `service` is null or a service that is not freed meanwhile; `method` is null or ends with a NUL; `body`
 * is null or has `body_len` bytes; `reply` may be written to; `error` is null or may be written to.
 */
mc_outcome mc_call(const struct mc_service *service,
                   const char *method,
                   const uint8_t *body,
                   size_t body_len,
                   uint64_t budget_ms,
                   uint32_t flags,
                   struct mc_reply **reply,
                   struct mc_error **error);

/**
 * The bytes of a reply, which live as long as it does. Never null, but for null.
 *
 * # Safety
 * `reply` is null or was given by mc_call and not freed.
 */
const uint8_t *mc_reply_data(const struct mc_reply *reply);

/**
 * How many bytes a reply has; 0 for null.
 *
 * # Safety
 * `reply` is null or was given by mc_call and not freed.
 */
size_t mc_reply_len(const struct mc_reply *reply);

/**
 * Frees a reply. Null is allowed.
 *
 * # Safety
 * `reply` is null or was given by mc_call, and is not used again.
 */
void mc_reply_free(struct mc_reply *reply);

/**
 * Serves a service, from now on, with these handlers. Each connection has a thread; `options` may be null.
 *
 * MC_OUTCOME_NOT_EXECUTED if the node refuses or does not answer, with its cause.
 *
 * # Safety
 * `node` is null or a connection that is not freed meanwhile; `service` is null or ends with a NUL;
 * `options` is null or good to read; `methods` is null or has `methods_len` methods, whose names are null or
 * end with a NUL, and whose functions may be called as their comments say; `server` may be written to;
 * `error` is null or may be written to.
 */
mc_outcome mc_serve(const struct mc_node *node,
                    const char *service,
                    const struct mc_serve_options *options,
                    const struct mc_method *methods,
                    size_t methods_len,
                    struct mc_server **server,
                    struct mc_error **error);

/**
 * Takes no new calls, finishes those at work, and ends. False if some were not over within `within_ms`:
 * their connections are ended, so that their callers learn of it. The server is still to be freed. A
 * handler that drains its own server waits for itself until the time is over.
 *
 * # Safety
 * `server` is null or a server that is not freed meanwhile.
 */
bool mc_drain(const struct mc_server *server,
              uint64_t within_ms);

/**
 * Frees a server. If it was not drained, it is, for a second at most. Null is allowed.
 *
 * # Safety
 * `server` is null or was given by mc_serve, and is not used again.
 */
void mc_server_free(struct mc_server *server);

/**
 * Which method is called; empty for null. It lives as long as the request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const char *mc_request_method(const struct mc_request *request);

/**
 * Who calls, as the nodes say: `tokyo/web-1/user/1000` or `tokyo/web-1/service/web`; empty for null. It
 * lives as long as the request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const char *mc_request_peer(const struct mc_request *request);

/**
 * The trace that the call is part of, 32 hexadecimal digits; empty for null. It lives as long as the
 * request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const char *mc_request_trace(const struct mc_request *request);

/**
 * What was sent, as many bytes as mc_request_len says. They live as long as the request.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
const uint8_t *mc_request_data(const struct mc_request *request);

/**
 * How many bytes were sent; 0 for null.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
size_t mc_request_len(const struct mc_request *request);

/**
 * For how many milliseconds the caller still waits; 0 for null.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
uint64_t mc_request_left_ms(const struct mc_request *request);

/**
 * Whether nobody waits any more: the caller has gone or given up, or the budget is spent. For handlers that
 * work for long without a call of their own. True for null.
 *
 * # Safety
 * `request` is null or that of the handler which runs.
 */
bool mc_request_is_over(const struct mc_request *request);

/**
 * Replies with a copy of these bytes; null if there are none.
 *
 * # Safety
 * `answer` is null or that of the handler which runs; `body` is null or has `body_len` bytes.
 */
mc_outcome mc_answer_reply(struct mc_answer *answer, const uint8_t *body, size_t body_len);

/**
 * Says no, with a code of the callee's own, below 2^24, and words for people, of which 4 KiB travel.
 *
 * # Safety
 * `answer` is null or that of the handler which runs; `message` is null or ends with a NUL.
 */
mc_outcome mc_answer_fail(struct mc_answer *answer,
                          uint32_t code,
                          const char *message);

/**
 * Says that the handler crashed, if its language can say so: the caller is told MC_OUTCOME_UNKNOWN with
 * MC_CAUSE_PANIC, for nobody knows what it had done by then.
 *
 * # Safety
 * `answer` is null or that of the handler which runs; `message` is null or ends with a NUL.
 */
mc_outcome mc_answer_crash(struct mc_answer *answer,
                           const char *message);

/**
 * The context that this thread is in, to take it to another; null if it is in none.
 */
struct mc_context *mc_context_current(void);

/**
 * Runs a function on this thread, in a context: calls that it makes are made for the call above. Without a
 * context (null) it is just run. `run` must not throw, jump out or end its thread.
 *
 * # Safety
 * `context` is null or a context that is not freed meanwhile; `run` is null or may be called once with
 * `user_data`.
 */
void mc_context_run(const struct mc_context *context,
                    void (*run)(void*),
                    void *user_data);

/**
 * Frees a context. Null is allowed.
 *
 * # Safety
 * `context` is null or was given by mc_context_current, and is not used again.
 */
void mc_context_free(struct mc_context *context);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MIDDLECON_H */
