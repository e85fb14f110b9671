/* Reading typed values out of the metadata, keeping the first breach in file order. */
#include "ddct_schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void record(ddct_schema *schema, uint64_t place, ddct_status status, const char *format, va_list arguments) {
    if (schema->status != DDCT_OK && schema->breach <= place)
        return;
    char reason[sizeof schema->error->reason];
    vsnprintf(reason, sizeof reason, format, arguments);
    schema->status = ddct_fail(schema->error, status, "%s", reason);
    schema->breach = place;
    if (schema->tensor != NULL)
        ddct_fail_tensor(schema->error, status, schema->tensor);
}

void ddct_breach(ddct_schema *schema, uint32_t node, ddct_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(schema, 2 * (uint64_t)node, status, format, arguments);
    va_end(arguments);
}

void ddct_breach_at_end(ddct_schema *schema, uint32_t object, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    record(schema, 2 * (uint64_t)(schema->json->nodes[object].end - 1) + 1, DDCT_INVALID, format, arguments);
    va_end(arguments);
}

static const ddct_json_node *get(const ddct_schema *schema, uint32_t node) { return &schema->json->nodes[node]; }

static const char *text(const ddct_schema *schema, uint32_t node) {
    return schema->json->text + get(schema, node)->offset;
}

void ddct_check_fractions(ddct_schema *schema, uint32_t node) {
    for (uint32_t i = node; i < get(schema, node)->end; i++)
        if (get(schema, i)->type == DDCT_JSON_DECIMAL)
            ddct_breach(schema, i, DDCT_INVALID, "a number with a fraction or an exponent");
}

bool ddct_read_object(ddct_schema *schema, uint32_t node, const char *what, const char *const *names, uint32_t total,
                      uint32_t *values) {
    memset(values, 0, total * sizeof *values);
    if (get(schema, node)->type != DDCT_JSON_OBJECT) {
        ddct_breach(schema, node, DDCT_INVALID, "%s is no object", what);
        return false;
    }
    for (uint32_t name = node + 1; name < get(schema, node)->end; name = get(schema, name + 1)->end) {
        uint32_t i = 0;
        while (i < total && !ddct_json_equals(schema->json, name, names[i]))
            i++;
        if (i < total)
            values[i] = name + 1;
        else if (get(schema, name)->length >= 2 && memcmp(text(schema, name), "x-", 2) == 0)
            ddct_check_fractions(schema, name + 1);
        else
            ddct_breach(schema, name, DDCT_INVALID, "%s has a name that is not defined", what);
    }
    return true;
}

void ddct_require(ddct_schema *schema, uint32_t node, const char *what, const char *const *names, uint32_t required,
                  const uint32_t *values) {
    for (uint32_t i = 0; i < required; i++)
        if (values[i] == 0)
            ddct_breach_at_end(schema, node, "%s lacks \"%s\"", what, names[i]);
}

bool ddct_read_array(ddct_schema *schema, uint32_t node, const char *what, uint32_t least, uint32_t most) {
    if (node == 0)
        return false;
    if (get(schema, node)->type != DDCT_JSON_ARRAY) {
        ddct_breach(schema, node, DDCT_INVALID, "%s is no array", what);
        return false;
    }
    if (get(schema, node)->length < least || get(schema, node)->length > most) {
        ddct_breach(schema, node, DDCT_INVALID, "%s has %u elements, not %u ... %u", what, get(schema, node)->length,
                    least, most);
        return false;
    }
    return true;
}

uint64_t ddct_read_integer(ddct_schema *schema, uint32_t node, const char *what, uint64_t least, uint64_t most) {
    if (node == 0)
        return least;
    const ddct_json_node *value = get(schema, node);
    if (value->type != DDCT_JSON_INTEGER || value->negative) {
        ddct_breach(schema, node, DDCT_INVALID, "%s is no integer in 0 ... 2^53 - 1", what);
        return least;
    }
    uint64_t number = (uint64_t)ddct_json_integer(schema->json, node);
    if (number < least || number > most) {
        ddct_breach(schema, node, DDCT_INVALID, "%s is %llu, not in %llu ... %llu", what, (unsigned long long)number,
                    (unsigned long long)least, (unsigned long long)most);
        return least;
    }
    return number;
}

int32_t ddct_read_level(ddct_schema *schema, uint32_t node, int32_t least, int32_t most) {
    int64_t number = 0;
    if (get(schema, node)->type == DDCT_JSON_INTEGER)
        number = ddct_json_integer(schema->json, node);
    if (get(schema, node)->type != DDCT_JSON_INTEGER || number < least || number > most) {
        ddct_breach(schema, node, DDCT_INVALID, "a class holds a value that is no integer in %d ... %d", (int)least,
                    (int)most);
        return 0;
    }
    return (int32_t)number;
}

const char *ddct_read_text(ddct_schema *schema, uint32_t node, const char *what, uint32_t most) {
    if (node == 0)
        return NULL;
    if (get(schema, node)->type != DDCT_JSON_STRING)
        ddct_breach(schema, node, DDCT_INVALID, "%s is no text", what);
    else if (get(schema, node)->length > most)
        ddct_breach(schema, node, DDCT_INVALID, "%s is longer than %u bytes", what, most);
    else
        return text(schema, node);
    return NULL;
}

void ddct_read_digest(ddct_schema *schema, uint32_t node, const char *what, uint8_t digest[DDCT_DIGEST_SIZE]) {
    if (node == 0)
        return;
    const char *digits = text(schema, node);
    bool good = get(schema, node)->type == DDCT_JSON_STRING && get(schema, node)->length == 2 * DDCT_DIGEST_SIZE;
    for (int i = 0; good && i < 2 * DDCT_DIGEST_SIZE; i++) {
        char c = digits[i];
        int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        good = value >= 0;
        digest[i / 2] = (uint8_t)((i % 2 == 0 ? 0 : digest[i / 2] << 4) | (value & 15));
    }
    if (!good)
        ddct_breach(schema, node, DDCT_INVALID, "%s is no digest of 64 lower-case hexadecimal digits", what);
}

const char *ddct_read_error_number(ddct_schema *schema, uint32_t node) {
    if (node == 0)
        return NULL;
    const ddct_json_node *value = get(schema, node);
    if ((value->type != DDCT_JSON_INTEGER && value->type != DDCT_JSON_DECIMAL) || value->negative) {
        ddct_breach(schema, node, DDCT_INVALID, "an error is no number >= 0");
        return NULL;
    }
    /* What follows a number has been parsed and is not needed any more: end the text there. */
    schema->json->text[value->offset + value->length] = '\0';
    return text(schema, node);
}

/* U+0000 ... U+001F and U+007F ... U+009F, in well-formed UTF-8. */
static bool has_control_characters(const char *string, uint32_t length) {
    for (uint32_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)string[i];
        if (c < 0x20 || c == 0x7F || (c == 0xC2 && (unsigned char)string[i + 1] < 0xA0))
            return true;
    }
    return false;
}

const char *ddct_read_tensor_name(ddct_schema *schema, uint32_t node) {
    const char *name = ddct_read_text(schema, node, "a tensor name", DDCT_MAX_NAME);
    if (name == NULL)
        return NULL;
    if (get(schema, node)->length > 0 && !has_control_characters(name, get(schema, node)->length))
        return name;
    ddct_breach(schema, node, DDCT_INVALID, "a tensor name is empty or holds control characters");
    return NULL;
}

static bool is_component(const char *component, uint32_t length) {
    return length >= 1 && length <= 255 && component[length - 1] != '.' && component[length - 1] != ' ';
}

const char *ddct_read_path(ddct_schema *schema, uint32_t node) {
    const char *path = ddct_read_text(schema, node, "a path", DDCT_MAX_NAME);
    if (path == NULL)
        return NULL;
    uint32_t length = get(schema, node)->length, start = 0;
    bool good = !has_control_characters(path, length);
    for (uint32_t i = 0; i <= length; i++) {
        if (i == length || path[i] == '/') {
            good = good && is_component(path + start, i - start);
            start = i + 1;
        } else if (path[i] == '\\' || path[i] == ':') {
            good = false;
        }
    }
    if (good)
        return path;
    ddct_breach(schema, node, DDCT_INVALID, "a path breaks the rules of section 5.4");
    return NULL;
}
