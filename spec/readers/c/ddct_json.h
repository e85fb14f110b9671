/* A strict JSON parser: RFC 8259 with the restrictions of section 5 of the specification. */
#ifndef DDCT_JSON_H
#define DDCT_JSON_H

#include "ddct_memory.h"

typedef enum ddct_json_type {
    DDCT_JSON_NULL,
    DDCT_JSON_FALSE,
    DDCT_JSON_TRUE,
    DDCT_JSON_INTEGER, /* no fraction and no exponent; magnitude at most 2^53 - 1 */
    DDCT_JSON_DECIMAL, /* a number with a fraction or an exponent, finite as binary64 */
    DDCT_JSON_STRING,
    DDCT_JSON_ARRAY,
    DDCT_JSON_OBJECT
} ddct_json_type;

/* A value. Values lie in one array in document order: the children of a container follow it, an object's as
 * name, value, name, value, ... The node after a value's last descendant has the index `end`. */
typedef struct ddct_json_node {
    uint8_t type;
    uint8_t negative; /* a number below 0 (as binary64, where what is too small is 0) */
    uint32_t offset;  /* of a string's unescaped bytes, or of a number's text */
    uint32_t length;  /* bytes of that, or the number of elements or members */
    uint32_t end;
} ddct_json_node;

typedef struct ddct_json {
    char *text; /* strings are unescaped in place, and end with a NUL */
    ddct_json_node *nodes;
    uint32_t count;
} ddct_json;

/* Parse `size` bytes (below 2^31), which are overwritten. Depth is at most 16, names in an object are
 * distinct. A breach is `DDCT_INVALID`. On success json->nodes is to be released by the caller. */
ddct_status ddct_json_parse(char *text, size_t size, ddct_memory *memory, ddct_json *json, ddct_error *error);

/* The value of a DDCT_JSON_INTEGER. */
int64_t ddct_json_integer(const ddct_json *json, uint32_t node);

/* Is it a string equal to `text`? */
bool ddct_json_equals(const ddct_json *json, uint32_t node, const char *text);

#endif
