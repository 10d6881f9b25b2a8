/* Checks libmiddlecon as a C program sees it, through the node whose run directory is its argument. */

#include <middlecon.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <threads.h>
#include <time.h>

#define CHECK(what)                                                                                \
    do {                                                                                           \
        if (!(what)) {                                                                             \
            fprintf(stderr, "check.c:%d: not so: %s\n", __LINE__, #what);                          \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static atomic_int released;

/* What the handlers share. */
struct shared {
    mc_service *self;
    mc_service *inner;
};

static void release(void *user_data) {
    (void)user_data;
    atomic_fetch_add(&released, 1);
}

static void echo(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data;
    CHECK(mc_answer_reply(answer, mc_request_data(request), mc_request_len(request)) == MC_OUTCOME_DONE);
}

static void nothing(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data, (void)request, (void)answer;
}

static void refuse(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data, (void)request;
    CHECK(mc_answer_fail(answer, 1u << 24, "too large a code") == MC_OUTCOME_USAGE);
    CHECK(mc_answer_fail(answer, 8, "\xff") == MC_OUTCOME_USAGE);
    CHECK(mc_answer_fail(answer, 7, "not today") == MC_OUTCOME_DONE);
}

static void crash(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data, (void)request;
    mc_answer_crash(answer, "on purpose");
}

/* Tells what it sees of the call: method, peer, trace, whether time is left. */
static void tell(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data;
    char text[256];
    int len = snprintf(text, sizeof text, "%s %s %s %s", mc_request_method(request),
                       mc_request_peer(request), mc_request_trace(request),
                       mc_request_is_over(request) ? "over" : "goes on");
    CHECK(mc_request_left_ms(request) > 0 && mc_request_left_ms(request) <= 60000);
    mc_answer_reply(answer, (const uint8_t *)text, (size_t)len);
}

struct other_thread {
    mc_context *context;
    mc_service *inner;
    char trace[64];
};

static void call_inner(void *user_data) {
    struct other_thread *other = user_data;
    mc_reply *reply;
    CHECK(mc_call(other->inner, "tell", NULL, 0, 0, 0, &reply, NULL) == MC_OUTCOME_DONE);
    CHECK(mc_reply_len(reply) < sizeof other->trace * 4);
    char text[256] = {0};
    memcpy(text, mc_reply_data(reply), mc_reply_len(reply));
    CHECK(sscanf(text, "%*s %*s %63s", other->trace) == 1);
    mc_reply_free(reply);
}

static void *in_context(void *user_data) {
    struct other_thread *other = user_data;
    mc_context_run(other->context, call_inner, other);
    return NULL;
}

/* Calls another service, on this thread and on one of its own: both are of the same trace. */
static void nest(void *user_data, const mc_request *request, mc_answer *answer) {
    struct shared *shared = user_data;
    struct other_thread here = {NULL, shared->inner, ""};
    call_inner(&here);
    CHECK(strcmp(here.trace, mc_request_trace(request)) == 0);
    struct other_thread there = {mc_context_current(), shared->inner, ""};
    CHECK(there.context != NULL);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, in_context, &there) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    mc_context_free(there.context);
    CHECK(strcmp(there.trace, mc_request_trace(request)) == 0);
    mc_answer_reply(answer, (const uint8_t *)"nested", 6);
}

/* Calls the service that it is of: a cycle. */
static void circle(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)request;
    struct shared *shared = user_data;
    mc_reply *reply;
    mc_error *error;
    CHECK(mc_call(shared->self, "echo", NULL, 0, 0, 0, &reply, &error) == MC_OUTCOME_NOT_EXECUTED);
    CHECK(mc_error_cause(error) == MC_CAUSE_CYCLE);
    CHECK(strcmp(mc_error_path(error), "c-outer c-outer") == 0);
    mc_answer_fail(answer, MC_CODE_NESTED, mc_error_text(error));
    mc_error_free(error);
}

/* Works until nobody waits for it any more. */
static void work(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data, (void)answer;
    while (!mc_request_is_over(request)) {
    }
    /* A reply of the very moment in which the budget ends is a reply: this one comes when nobody doubts. */
    struct timespec half_a_second = {0, 500 * 1000 * 1000};
    thrd_sleep(&half_a_second, NULL);
}

static mc_service *service(mc_node *node, const char *name) {
    mc_service *service;
    mc_error *error;
    CHECK(mc_service_open(node, name, &service, &error) == MC_OUTCOME_DONE);
    CHECK(service != NULL && error == NULL);
    return service;
}

/* Calls, and checks outcome and cause; the message goes to `message` of 256 bytes, if it is not null. */
static void fails(mc_service *service, const char *method, uint64_t budget_ms, mc_outcome outcome,
                  mc_cause cause, char *message) {
    mc_reply *reply;
    mc_error *error;
    mc_outcome told = mc_call(service, method, NULL, 0, budget_ms, 0, &reply, &error);
    CHECK(told == outcome && reply == NULL && error != NULL);
    CHECK(mc_error_outcome(error) == outcome && mc_error_cause(error) == cause);
    CHECK(strlen(mc_error_text(error)) > 0);
    if (message != NULL) {
        snprintf(message, 256, "%s", mc_error_message(error));
    }
    mc_error_free(error);
}

static void check_usage(mc_node *node) {
    mc_error *error;
    mc_node *none;
    CHECK(mc_connect("/nowhere", &none, &error) == MC_OUTCOME_NOT_EXECUTED && none == NULL);
    CHECK(mc_error_cause(error) == MC_CAUSE_NO_NODE && mc_error_retry_after_ms(error) == -1);
    CHECK(strstr(mc_error_text(error), "kumo up") != NULL);
    mc_error_free(error);
    CHECK(mc_connect("/nowhere", NULL, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_connect("\xff", &none, NULL) == MC_OUTCOME_USAGE);

    mc_service *service_;
    const char *names[] = {NULL, "", "\xff\xfe", "No", "a/b", "1a"};
    for (size_t at = 0; at < sizeof names / sizeof *names; at++) {
        CHECK(mc_service_open(node, names[at], &service_, &error) == MC_OUTCOME_USAGE);
        CHECK(service_ == NULL && strlen(mc_error_message(error)) > 0);
        mc_error_free(error);
    }
    CHECK(mc_service_open(NULL, "a", &service_, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_service_open(node, "a", NULL, NULL) == MC_OUTCOME_USAGE);

    mc_service *good = service(node, "c-outer");
    mc_reply *reply;
    CHECK(mc_call(NULL, "a", NULL, 0, 0, 0, &reply, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_call(good, NULL, NULL, 0, 0, 0, &reply, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_call(good, "No", NULL, 0, 0, 0, &reply, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_call(good, "a", NULL, 1, 0, 0, &reply, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_call(good, "a", (const uint8_t *)"", SIZE_MAX, 0, 0, &reply, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_call(good, "a", NULL, 0, 0, 8, &reply, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_call(good, "a", NULL, 0, 0, 0, NULL, NULL) == MC_OUTCOME_USAGE);
    mc_service_free(good);

    mc_server *server;
    mc_method twice[] = {{"a", echo, NULL, release}, {"a", echo, NULL, release}};
    mc_method empty = {"a", NULL, NULL, release};
    mc_serve_options bad = {0, 0, 9};
    mc_serve_options many = {5000, 0, 0};
    CHECK(mc_serve(node, "c-x", NULL, twice, 2, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_serve(node, "c-x", NULL, &empty, 1, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_serve(node, "c-x", &bad, twice, 1, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_serve(node, "c-x", &many, twice, 1, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_serve(NULL, "c-x", NULL, twice, 1, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_serve(node, NULL, NULL, twice, 1, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(atomic_exchange(&released, 0) == 7);
    CHECK(mc_serve(node, "c-x", NULL, NULL, 0, &server, NULL) == MC_OUTCOME_USAGE);
    CHECK(mc_serve(node, "c-x", NULL, NULL, 1, &server, NULL) == MC_OUTCOME_USAGE);

    /* Nothing happens to nothing. */
    mc_node_free(NULL), mc_service_free(NULL), mc_server_free(NULL), mc_reply_free(NULL);
    mc_error_free(NULL), mc_context_free(NULL), mc_context_run(NULL, NULL, NULL);
    CHECK(mc_error_outcome(NULL) == MC_OUTCOME_USAGE && *mc_error_text(NULL) == 0);
    CHECK(!mc_drain(NULL, 0) && mc_reply_len(NULL) == 0 && mc_reply_data(NULL) == NULL);
    CHECK(mc_request_is_over(NULL) && *mc_request_method(NULL) == 0 && mc_context_current() == NULL);
    CHECK(mc_answer_reply(NULL, NULL, 0) == MC_OUTCOME_USAGE);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    CHECK(mc_abi_version() == MC_ABI_VERSION);
    mc_node *node;
    mc_error *error = (mc_error *)1;
    CHECK(mc_connect(argv[1], &node, &error) == MC_OUTCOME_DONE && error == NULL);
    check_usage(node);

    struct shared shared = {service(node, "c-outer"), service(node, "c-inner")};
    mc_method outer[] = {
        {"echo", echo, NULL, release},         {"nothing", nothing, NULL, release},
        {"refuse", refuse, NULL, release},     {"crash", crash, NULL, release},
        {"nest", nest, &shared, release},      {"circle", circle, &shared, release},
        {"work", work, NULL, release},
    };
    mc_method inner = {NULL, tell, NULL, NULL};
    mc_serve_options options = {4, 4, MC_REENTRANCY_REJECT};
    mc_server *outer_server, *inner_server;
    CHECK(mc_serve(node, "c-outer", &options, outer, 7, &outer_server, &error) == MC_OUTCOME_DONE);
    CHECK(mc_serve(node, "c-inner", NULL, &inner, 1, &inner_server, &error) == MC_OUTCOME_DONE);
    /* What was made with it keeps it. */
    mc_node_free(node);
    mc_node *inner_node;
    CHECK(mc_connect(argv[1], &inner_node, NULL) == MC_OUTCOME_DONE);

    mc_reply *reply;
    const uint8_t body[] = {0, 255, 'a', 0};
    for (int round = 0; round < 100; round++) {
        CHECK(mc_call(shared.self, "echo", body, 4, 1000, MC_WAIT_FOR_PLACE, &reply, &error) == MC_OUTCOME_DONE);
        CHECK(error == NULL && mc_reply_len(reply) == 4);
        CHECK(memcmp(mc_reply_data(reply), body, 4) == 0);
        mc_reply_free(reply);
    }
    size_t large_len = 3 << 20;
    uint8_t *large = malloc(large_len);
    CHECK(large != NULL);
    for (size_t at = 0; at < large_len; at++) {
        large[at] = (uint8_t)(at ^ at >> 8);
    }
    CHECK(mc_call(shared.self, "echo", large, large_len, 0, 0, &reply, &error) == MC_OUTCOME_DONE);
    CHECK(mc_reply_len(reply) == large_len && memcmp(mc_reply_data(reply), large, large_len) == 0);
    mc_reply_free(reply);
    free(large);
    CHECK(mc_call(shared.self, "nothing", NULL, 0, 60000, 0, &reply, &error) == MC_OUTCOME_DONE);
    CHECK(mc_reply_len(reply) == 0 && mc_reply_data(reply) != NULL);
    mc_reply_free(reply);

    CHECK(mc_call(shared.self, "refuse", NULL, 0, 0, 0, &reply, &error) == MC_OUTCOME_FAILED);
    CHECK(mc_error_code(error) == 7 && mc_error_cause(error) == MC_CAUSE_NONE);
    CHECK(strcmp(mc_error_message(error), "not today") == 0);
    mc_error_free(error);

    char message[256];
    fails(shared.self, "crash", 0, MC_OUTCOME_UNKNOWN, MC_CAUSE_PANIC, message);
    CHECK(strcmp(message, "on purpose") == 0);
    fails(shared.self, "no-such", 0, MC_OUTCOME_NOT_EXECUTED, MC_CAUSE_NO_SUCH, NULL);
    fails(shared.self, "work", 50, MC_OUTCOME_UNKNOWN, MC_CAUSE_DEADLINE, NULL);
    mc_outcome circled = mc_call(shared.self, "circle", NULL, 0, 0, 0, &reply, &error);
    CHECK(circled == MC_OUTCOME_FAILED && mc_error_code(error) == MC_CODE_NESTED);
    mc_error_free(error);
    CHECK(mc_call(shared.self, "nest", NULL, 0, 20000, 0, &reply, NULL) == MC_OUTCOME_DONE);
    CHECK(mc_reply_len(reply) == 6 && memcmp(mc_reply_data(reply), "nested", 6) == 0);
    mc_reply_free(reply);
    mc_service *fresh = service(inner_node, "c-inner");
    mc_node_free(inner_node);
    CHECK(mc_call(fresh, "any.name", NULL, 0, 60000, 0, &reply, NULL) == MC_OUTCOME_DONE);
    mc_service_free(fresh);
    CHECK(mc_reply_len(reply) > 22 && memcmp(mc_reply_data(reply), "any.name tokyo/a/user/", 22) == 0);
    mc_reply_free(reply);

    CHECK(mc_drain(outer_server, 20000));
    fails(shared.self, "echo", 0, MC_OUTCOME_NOT_EXECUTED, MC_CAUSE_DRAINING, NULL);
    mc_server_free(outer_server);
    /* Each handler is released once, by the last thread that could have called it. */
    while (atomic_load(&released) < 7) {
    }
    CHECK(atomic_load(&released) == 7);
    mc_service_free(shared.self);
    mc_service_free(shared.inner);
    mc_server_free(inner_server);
    CHECK(strcmp(mc_cause_name(MC_CAUSE_HOST_LOST), "HOST_LOST") == 0 && *mc_cause_name(99) == 0);
    puts("all checks passed");
    return 0;
}
