/* ddct-cat: list, verify and decode .ddct archives. Exit statuses: section 10; 1 for files that cannot be read or
 * written, 2 for wrong usage. */
#define _POSIX_C_SOURCE 200809L

#include "ddct.h"
#include "safetensors.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char usage[] =
    "usage: ddct-cat list ARCHIVE                     one line per tensor\n"
    "       ddct-cat info ARCHIVE                     ids, shards and side files\n"
    "       ddct-cat digests ARCHIVE                  digest and name of every tensor, as the archive states them\n"
    "       ddct-cat verify ARCHIVE [--base BASE]     check everything; without a base, all that needs none\n"
    "       ddct-cat get ARCHIVE TENSOR [--base BASE] [--rows FIRST:COUNT]   decoded bytes to standard output\n"
    "       ddct-cat file ARCHIVE PATH                a side file to standard output\n"
    "       ddct-cat conform ARCHIVE [BASE]           one line of JSON, for conformance tests\n"
    "BASE is a safetensors file, or a directory of them.\n"
    "options: --budget BYTES (memory, default 1 GiB)  --layers N (decode at most N)  --memory (do not use pread)\n";

typedef struct arguments {
    const char *command, *archive, *item, *base, *rows;
    uint32_t layers;
    uint64_t budget;
    bool memory;
} arguments;

typedef struct session {
    arguments arguments;
    int descriptor;
    void *content;
    ddct_archive *archive;
    ddct_summary summary;
    bool has_base;
    base_model base;
    ddct_error error;
} session;

static int exit_status(ddct_status status) {
    static const int statuses[] = {0, 3, 3, 4, 5, 6, 9, 1, 2};
    return statuses[status];
}

static ddct_status fail(session *s, ddct_status status, const char *reason) {
    return ddct_fail(&s->error, status, "%s", reason);
}

static ddct_status open_in_memory(session *s, const ddct_options *options) {
    struct stat information;
    if (fstat(s->descriptor, &information) != 0)
        return fail(s, DDCT_IO, "cannot read the archive");
    size_t size = (size_t)information.st_size;
    s->content = malloc(size + 1);
    if (s->content == NULL || pread(s->descriptor, s->content, size, 0) != (ssize_t)size)
        return fail(s, DDCT_IO, "cannot read the archive");
    return ddct_open_memory(s->content, size, options, &s->archive, &s->error);
}

static ddct_status open_session(session *s) {
    ddct_options options = {.budget = s->arguments.budget};
    s->descriptor = open(s->arguments.archive, O_RDONLY);
    if (s->descriptor < 0)
        return fail(s, DDCT_IO, "cannot open the archive");
    ddct_status status = s->arguments.memory
                             ? open_in_memory(s, &options)
                             : ddct_open_descriptor(s->descriptor, &options, &s->archive, &s->error);
    if (status != DDCT_OK)
        return status;
    ddct_get_summary(s->archive, &s->summary);
    if (s->arguments.base != NULL) {
        s->has_base = true;
        if (!base_model_open(&s->base, s->arguments.base, &s->error))
            return DDCT_IO;
    }
    return DDCT_OK;
}

static void close_session(session *s) {
    ddct_close(s->archive);
    free(s->content);
    if (s->has_base)
        base_model_close(&s->base);
    if (s->descriptor >= 0)
        close(s->descriptor);
}

static void print_hex(const uint8_t *digest) {
    for (int i = 0; i < DDCT_DIGEST_SIZE; i++)
        printf("%02x", digest[i]);
}

/* A JSON text; names and paths hold no control characters. */
static void print_json_text(const char *text) {
    putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        putchar(*text);
    }
    putchar('"');
}

static ddct_status list(session *s) {
    for (uint32_t i = 0; i < s->summary.tensors; i++) {
        ddct_tensor t;
        ddct_get_tensor(s->archive, i, &t);
        printf("%-8s%-8s", ddct_op_name(t.op), ddct_dtype_name(t.dtype));
        printf("[");
        for (uint32_t k = 0; k < t.rank; k++)
            printf(k == 0 ? "%" PRIu64 : ", %" PRIu64, t.shape[k]);
        printf("]  %s", t.name);
        if (t.error != NULL)
            printf("  error %s", t.error);
        if (t.understood < t.layers)
            printf("  (%u of %u layers understood)", t.understood, t.layers);
        printf("\n");
    }
    return DDCT_OK;
}

static ddct_status info(session *s) {
    const ddct_summary *summary = &s->summary;
    printf("generator   %s\ncontent id  ", summary->generator);
    print_hex(summary->content_id);
    printf("\nbase id     ");
    print_hex(summary->base_id);
    if (summary->hint_repo != NULL)
        printf("\nbase hint   %s", summary->hint_repo);
    for (uint32_t i = 0; i < summary->target_ids; i++) {
        printf("\ntarget id   ");
        print_hex(summary->target_id[i]);
    }
    printf("\nexact id    ");
    print_hex(summary->exact_id);
    printf("\n%u tensors, %u shards, %u files, %" PRIu64 " chunks of %" PRIu64 " bytes\n", summary->tensors,
           summary->shards, summary->files, summary->chunks, summary->chunk_size);
    for (uint32_t i = 0; i < summary->shards; i++) {
        ddct_shard shard;
        ddct_get_shard(s->archive, i, &shard);
        printf("shard       %s\n", shard.path);
    }
    for (uint32_t i = 0; i < summary->files; i++) {
        ddct_file file;
        ddct_get_file(s->archive, i, &file);
        printf("file        %s (%" PRIu64 " bytes)\n", file.path, file.size);
    }
    return DDCT_OK;
}

static ddct_status digests(session *s) {
    for (uint32_t i = 0; i < s->summary.tensors; i++) {
        ddct_tensor t;
        ddct_get_tensor(s->archive, i, &t);
        print_hex(t.digest);
        printf("  %s\n", t.name);
    }
    return DDCT_OK;
}

/* Step 10 for one tensor. `*base` and `*size` become NULL and 0 if it needs none. */
static ddct_status find_base(session *s, const ddct_tensor *t, uint32_t index, const void **base, uint64_t *size) {
    static const base_model nothing;
    *base = NULL;
    *size = 0;
    if (!t->needs_base)
        return DDCT_OK;
    const base_tensor *found = base_model_find(s->has_base ? &s->base : &nothing, s->archive, t, &s->error);
    if (found == NULL)
        return DDCT_BASE_MISMATCH;
    *base = found->bytes;
    *size = found->size;
    return ddct_check_base(s->archive, index, *base, *size, &s->error);
}

/* Memory for a result, within the budget. */
static void *allocate_result(session *s, uint64_t size) {
    uint64_t budget = s->arguments.budget == 0 ? DDCT_DEFAULT_BUDGET : s->arguments.budget;
    void *buffer = size > budget || size > SIZE_MAX - 1 ? NULL : malloc((size_t)size + 1);
    if (buffer == NULL)
        ddct_fail(&s->error, DDCT_BUDGET, "a result of %" PRIu64 " bytes is above the budget", size);
    return buffer;
}

typedef void (*take_result)(const char *name, const void *bytes, uint64_t size, bool first);

static ddct_status decode_tensor(session *s, uint32_t index, take_result take, bool first) {
    ddct_tensor t;
    const void *base;
    uint64_t base_size;
    ddct_get_tensor(s->archive, index, &t);
    ddct_status status = find_base(s, &t, index, &base, &base_size);
    if (status != DDCT_OK)
        return status;
    void *out = allocate_result(s, t.bytes);
    if (out == NULL)
        return ddct_fail_tensor(&s->error, DDCT_BUDGET, t.name);
    status = ddct_decode(s->archive, index, s->arguments.layers, base, base_size, out, t.bytes, &s->error);
    if (status == DDCT_OK && take != NULL)
        take(t.name, out, t.bytes, first);
    free(out);
    return status;
}

static ddct_status read_side_file(session *s, uint32_t index, take_result take, bool first) {
    ddct_file file;
    ddct_get_file(s->archive, index, &file);
    void *out = allocate_result(s, file.size);
    if (out == NULL)
        return DDCT_BUDGET;
    ddct_status status = ddct_read_file(s->archive, index, out, file.size, &s->error);
    if (status == DDCT_OK && take != NULL)
        take(file.path, out, file.size, first);
    free(out);
    return status;
}

/* Steps 10 to 12, in this order. */
static ddct_status check_bases(session *s) {
    ddct_status status = DDCT_OK;
    for (uint32_t i = 0; i < s->summary.tensors && status == DDCT_OK; i++) {
        ddct_tensor t;
        const void *base;
        uint64_t base_size;
        ddct_get_tensor(s->archive, i, &t);
        status = find_base(s, &t, i, &base, &base_size);
    }
    return status;
}

static ddct_status verify(session *s) {
    if (!s->has_base) {
        ddct_status status = ddct_verify(s->archive, &s->error);
        if (status == DDCT_OK)
            printf("good: every chunk and payload of %u tensors; results were not checked against a base\n",
                   s->summary.tensors);
        return status;
    }
    ddct_status status = check_bases(s);
    for (uint32_t i = 0; i < s->summary.files && status == DDCT_OK; i++)
        status = read_side_file(s, i, NULL, false);
    for (uint32_t i = 0; i < s->summary.tensors && status == DDCT_OK; i++)
        status = decode_tensor(s, i, NULL, false);
    if (status == DDCT_OK)
        printf("good: %u of %u tensors decode to their digests\n", s->summary.tensors, s->summary.tensors);
    return status;
}

static void write_result(const char *name, const void *bytes, uint64_t size, bool first) {
    (void)name;
    (void)first;
    fwrite(bytes, 1, (size_t)size, stdout);
}

static ddct_status get_rows(session *s, uint32_t index) {
    ddct_tensor t;
    const void *base;
    uint64_t base_size, first, count;
    ddct_get_tensor(s->archive, index, &t);
    if (sscanf(s->arguments.rows, "%" SCNu64 ":%" SCNu64, &first, &count) != 2 || first > t.view_rows ||
        count > t.view_rows - first)
        return fail(s, DDCT_ARGUMENT, "--rows wants FIRST:COUNT within the view, and a tensor that has row ranges");
    ddct_status status = find_base(s, &t, index, &base, &base_size);
    if (status != DDCT_OK)
        return status;
    uint64_t row_size = t.view_columns * ddct_dtype_size(t.dtype);
    uint64_t base_row = t.needs_base ? t.view_columns * ddct_dtype_size(t.base_dtype) : 0;
    void *out = allocate_result(s, count * row_size);
    if (out == NULL)
        return DDCT_BUDGET;
    const void *rows = base == NULL ? NULL : (const unsigned char *)base + first * base_row;
    status = ddct_decode_rows(s->archive, index, s->arguments.layers, first, count, rows, count * base_row, out,
                              count * row_size, &s->error);
    if (status == DDCT_OK)
        write_result(t.name, out, count * row_size, true);
    free(out);
    return status;
}

static ddct_status get(session *s) {
    uint32_t index;
    if (!ddct_find_tensor(s->archive, s->arguments.item, strlen(s->arguments.item), &index))
        return fail(s, DDCT_ARGUMENT, "no such tensor");
    return s->arguments.rows != NULL ? get_rows(s, index) : decode_tensor(s, index, write_result, true);
}

static ddct_status get_file(session *s) {
    for (uint32_t i = 0; i < s->summary.files; i++) {
        ddct_file file;
        ddct_get_file(s->archive, i, &file);
        if (strcmp(file.path, s->arguments.item) == 0)
            return read_side_file(s, i, write_result, true);
    }
    return fail(s, DDCT_ARGUMENT, "no such side file");
}

static void print_digest_member(const char *name, const void *bytes, uint64_t size, bool first) {
    uint8_t digest[DDCT_DIGEST_SIZE];
    ddct_tensor_digest(bytes, size, digest);
    printf(first ? "" : ", ");
    print_json_text(name);
    printf(": \"");
    print_hex(digest);
    printf("\"");
}

/* The line is complete only if everything is good, so a first run finds out whether it is. */
static ddct_status conform(session *s) {
    ddct_status status = check_bases(s);
    for (int printing = 0; printing < 2 && status == DDCT_OK; printing++) {
        take_result take = printing ? print_digest_member : NULL;
        if (printing)
            printf("{\"status\": \"ok\", \"files\": {");
        for (uint32_t i = 0; i < s->summary.files && status == DDCT_OK; i++)
            status = read_side_file(s, i, take, i == 0);
        if (printing)
            printf("}, \"tensors\": {");
        for (uint32_t i = 0; i < s->summary.tensors && status == DDCT_OK; i++)
            status = decode_tensor(s, i, take, i == 0);
        if (printing)
            printf("}}\n");
    }
    return status;
}

static void report_conform(const ddct_error *error) {
    printf("{\"status\": \"%s\", \"tensor\": ", ddct_status_name(error->status));
    if (error->tensor[0] == '\0')
        printf("null");
    else
        print_json_text(error->tensor);
    printf(", \"reason\": ");
    print_json_text(error->reason);
    printf("}\n");
}

static const struct {
    const char *name;
    ddct_status (*run)(session *);
    int least, most; /* operands */
} commands[] = {
    {"list", list, 1, 1}, {"info", info, 1, 1},     {"digests", digests, 1, 1}, {"verify", verify, 1, 1},
    {"get", get, 2, 2},   {"file", get_file, 2, 2}, {"conform", conform, 1, 2},
};

static bool parse_number(const char *text, uint64_t *value) {
    char *end;
    *value = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0';
}

/* Returns the number of operands, or -1. */
static int parse_arguments(int count, char **values, arguments *a) {
    const char *operands[2] = {NULL, NULL};
    int operand_count = 0;
    for (int i = 2; i < count; i++) {
        uint64_t number = 0;
        const char *next = i + 1 < count ? values[i + 1] : NULL;
        bool takes_value = true;
        if (strcmp(values[i], "--base") == 0 && next != NULL) {
            a->base = next;
        } else if (strcmp(values[i], "--rows") == 0 && next != NULL) {
            a->rows = next;
        } else if (strcmp(values[i], "--budget") == 0 && next != NULL && parse_number(next, &number)) {
            a->budget = number;
        } else if (strcmp(values[i], "--layers") == 0 && next != NULL && parse_number(next, &number)) {
            a->layers = number > DDCT_MAX_LAYERS ? DDCT_MAX_LAYERS : (uint32_t)number;
        } else if (strcmp(values[i], "--memory") == 0) {
            a->memory = true;
            takes_value = false;
        } else if (strncmp(values[i], "--", 2) != 0 && operand_count < 2) {
            operands[operand_count++] = values[i];
            takes_value = false;
        } else {
            return -1;
        }
        i += takes_value;
    }
    a->archive = operands[0];
    a->item = operands[1];
    return operand_count;
}

int main(int count, char **values) {
    session s = {.descriptor = -1};
    size_t command = 0, command_count = sizeof commands / sizeof commands[0];
    while (count >= 2 && command < command_count && strcmp(values[1], commands[command].name) != 0)
        command++;
    int operands = count >= 2 ? parse_arguments(count, values, &s.arguments) : -1;
    if (command == command_count || operands < commands[command].least || operands > commands[command].most) {
        fputs(usage, stderr);
        return 2;
    }
    bool conforming = commands[command].run == conform;
    if (conforming && s.arguments.base == NULL)
        s.arguments.base = s.arguments.item;
    ddct_status status = open_session(&s);
    if (status == DDCT_OK)
        status = commands[command].run(&s);
    if (status != DDCT_OK && conforming)
        report_conform(&s.error);
    else if (status != DDCT_OK)
        fprintf(stderr, "ddct-cat: %s: %s%s%s\n", ddct_status_name(status), s.error.reason,
                s.error.tensor[0] == '\0' ? "" : ": tensor ", s.error.tensor);
    close_session(&s);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fputs("ddct-cat: cannot write\n", stderr);
        return 1;
    }
    return exit_status(status);
}
