/* Serves hanger/hang, which says that it runs and then never answers: ./hang RUN_DIR */

#include <middlecon.h>
#include <stdio.h>
#include <unistd.h>

static void hang(void *user_data, const mc_request *request, mc_answer *answer) {
    (void)user_data, (void)request, (void)answer;
    puts("hangs");
    fflush(stdout);
    for (;;) {
        pause();
    }
}

int main(int argc, char **argv) {
    mc_node *node = NULL;
    mc_server *server = NULL;
    mc_error *error = NULL;
    mc_method methods[] = {{.name = "hang", .handler = hang}};
    if (mc_connect(argc > 1 ? argv[1] : NULL, &node, &error) != MC_OUTCOME_DONE ||
        mc_serve(node, "hanger", NULL, methods, 1, &server, &error) != MC_OUTCOME_DONE) {
        fprintf(stderr, "hang: %s\n", mc_error_text(error));
        return 1;
    }
    puts("serves hanger");
    fflush(stdout);
    for (;;) {
        pause();
    }
}
