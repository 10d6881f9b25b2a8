/* Serves greeter/greet until TERM: cc serve.c -lmiddlecon -o serve && ./serve RUN_DIR */

#include <middlecon.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

static void greet(void *user_data, const mc_request *request, mc_answer *answer) {
    const char *hello = user_data;
    char text[1024];
    size_t len = mc_request_len(request), hello_len = strlen(hello);
    if (len > sizeof text - hello_len) {
        mc_answer_fail(answer, 1, "nobody has such a long name");
        return;
    }
    memcpy(text, hello, hello_len);
    memcpy(text + hello_len, mc_request_data(request), len);
    mc_answer_reply(answer, (const uint8_t *)text, hello_len + len);
}

int main(int argc, char **argv) {
    /* Before the library starts threads, which inherit it. */
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGINT);
    sigprocmask(SIG_BLOCK, &stop, NULL);

    mc_node *node = NULL;
    mc_server *server = NULL;
    mc_error *error = NULL;
    mc_method methods[] = {{.name = "greet", .handler = greet, .user_data = "hello "}};
    if (mc_connect(argc > 1 ? argv[1] : NULL, &node, &error) != MC_OUTCOME_DONE ||
        mc_serve(node, "greeter", NULL, methods, 1, &server, &error) != MC_OUTCOME_DONE) {
        fprintf(stderr, "serve: %s\n", mc_error_text(error));
        mc_error_free(error);
        mc_node_free(node);
        return 1;
    }
    puts("serves greeter");
    fflush(stdout);
    int number;
    sigwait(&stop, &number);
    mc_drain(server, 10000);
    mc_server_free(server);
    mc_node_free(node);
    return 0;
}
