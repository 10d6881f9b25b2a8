/* Calls greeter/greet: cc call.c -lmiddlecon -o call && ./call RUN_DIR world */

#include <middlecon.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: call RUN_DIR NAME\n");
        return 2;
    }
    mc_node *node = NULL;
    mc_service *greeter = NULL;
    mc_reply *reply = NULL;
    mc_error *error = NULL;
    const uint8_t *body = (const uint8_t *)argv[2];
    mc_outcome outcome = mc_connect(argv[1], &node, &error);
    if (outcome == MC_OUTCOME_DONE) {
        outcome = mc_service_open(node, "greeter", &greeter, &error);
    }
    if (outcome == MC_OUTCOME_DONE) {
        outcome = mc_call(greeter, "greet", body, strlen(argv[2]), 2000, 0, &reply, &error);
    }
    if (outcome == MC_OUTCOME_DONE) {
        printf("%.*s\n", (int)mc_reply_len(reply), (const char *)mc_reply_data(reply));
    } else {
        const char *again = outcome == MC_OUTCOME_NOT_EXECUTED ? "; trying again is safe" : "";
        fprintf(stderr, "call: %s%s\n", mc_error_text(error), again);
    }
    mc_error_free(error);
    mc_reply_free(reply);
    mc_service_free(greeter);
    mc_node_free(node);
    return outcome == MC_OUTCOME_DONE ? 0 : 1;
}
