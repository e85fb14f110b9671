/* A strict JSON parser without recursion. Strings are unescaped in place. */
#include "ddct_json.h"

#include <string.h>

enum { MAX_DEPTH = 16 };
static const uint64_t MAX_INTEGER = ((uint64_t)1 << 53) - 1;

typedef struct parser {
    unsigned char *text;
    size_t position, size;
    ddct_json_node *nodes;
    uint32_t count;
    ddct_memory *memory;
    ddct_error *error;
} parser;

static ddct_status refuse(parser *p, const char *what) {
    return ddct_fail(p->error, DDCT_INVALID, "metadata: %s at byte %llu", what, (unsigned long long)p->position);
}

/* The byte at the position, or 0 at the end (0 is valid nowhere outside a string). */
static unsigned char peek(const parser *p) { return p->position < p->size ? p->text[p->position] : 0; }

static void skip_space(parser *p) {
    while (p->position < p->size) {
        unsigned char c = p->text[p->position];
        if (c != ' ' && c != '\t' && c != '\n' && c != '\r')
            break;
        p->position++;
    }
}

static uint32_t add_node(parser *p, ddct_json_type type) {
    ddct_json_node *node = &p->nodes[p->count];
    *node = (ddct_json_node){.type = (uint8_t)type, .offset = (uint32_t)p->position, .end = p->count + 1};
    return p->count++;
}

/* Length of the well-formed UTF-8 sequence at `s`, which is not ASCII (RFC 3629: no overlong forms, no
 * surrogates), or 0. */
static size_t utf8_length(const unsigned char *s, size_t left) {
    size_t length = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || length > left)
        return 0;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] == 0xE0)
        low = 0xA0;
    else if (s[0] == 0xED)
        high = 0x9F;
    else if (s[0] == 0xF0)
        low = 0x90;
    else if (s[0] == 0xF4)
        high = 0x8F;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < length; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    return length;
}

/* Four hexadecimal digits at the position, or -1. */
static int32_t hex4(parser *p) {
    if (p->size - p->position < 4)
        return -1;
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        unsigned char c = p->text[p->position + (size_t)i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    p->position += 4;
    return value;
}

static size_t put_utf8(unsigned char *out, uint32_t c) {
    if (c < 0x80) {
        out[0] = (unsigned char)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (unsigned char)(0xC0 | c >> 6);
        out[1] = (unsigned char)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (unsigned char)(0xE0 | c >> 12);
        out[1] = (unsigned char)(0x80 | (c >> 6 & 63));
        out[2] = (unsigned char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (unsigned char)(0xF0 | c >> 18);
    out[1] = (unsigned char)(0x80 | (c >> 12 & 63));
    out[2] = (unsigned char)(0x80 | (c >> 6 & 63));
    out[3] = (unsigned char)(0x80 | (c & 63));
    return 4;
}

/* One escape, the position being after its backslash. It writes at most as many bytes as it has read. */
static ddct_status parse_escape(parser *p, size_t *out) {
    unsigned char c = peek(p);
    p->position++;
    static const char plain[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
    if (c != 'u') {
        for (size_t i = 0; i + 1 < sizeof plain; i += 2) {
            if (c == (unsigned char)plain[i]) {
                p->text[(*out)++] = (unsigned char)plain[i + 1];
                return DDCT_OK;
            }
        }
        return refuse(p, "unknown escape");
    }
    int32_t unit = hex4(p);
    if (unit < 0)
        return refuse(p, "bad \\u escape");
    if (unit >= 0xDC00 && unit <= 0xDFFF)
        return refuse(p, "lone surrogate");
    if (unit >= 0xD800 && unit <= 0xDBFF) {
        if (p->size - p->position < 6 || p->text[p->position] != '\\' || p->text[p->position + 1] != 'u')
            return refuse(p, "lone surrogate");
        p->position += 2;
        int32_t low = hex4(p);
        if (low < 0xDC00 || low > 0xDFFF)
            return refuse(p, "lone surrogate");
        unit = 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
    }
    *out += put_utf8(p->text + *out, (uint32_t)unit);
    return DDCT_OK;
}

static ddct_status parse_string(parser *p) {
    p->position++;
    uint32_t node = add_node(p, DDCT_JSON_STRING);
    size_t out = p->position;
    for (;;) {
        if (p->position >= p->size)
            return refuse(p, "unterminated string");
        unsigned char c = p->text[p->position];
        if (c == '"')
            break;
        if (c < 0x20)
            return refuse(p, "control character in a string");
        if (c == '\\') {
            p->position++;
            ddct_status status = parse_escape(p, &out);
            if (status != DDCT_OK)
                return status;
            continue;
        }
        if (c < 0x80) {
            p->text[out++] = c;
            p->position++;
            continue;
        }
        size_t length = utf8_length(p->text + p->position, p->size - p->position);
        if (length == 0)
            return refuse(p, "malformed UTF-8");
        memmove(p->text + out, p->text + p->position, length);
        p->position += length;
        out += length;
    }
    p->nodes[node].length = (uint32_t)(out - p->nodes[node].offset);
    p->text[out] = '\0';
    p->position++;
    return DDCT_OK;
}

static size_t skip_digits(parser *p, bool *nonzero) {
    size_t start = p->position;
    while (peek(p) >= '0' && peek(p) <= '9') {
        *nonzero = *nonzero || peek(p) != '0';
        p->position++;
    }
    return p->position - start;
}

/* The smallest number that rounds to infinity as binary64, 2^1024 - 2^970, and the largest that rounds to 0, 2^-1075:
 * their decimal digits, and the power of ten that a point before the first digit needs. */
static const char infinite_digits[] =
    "1797693134862315807937289714053034150799341327100378269361737789804449682927647509466490179775872070"
    "9633028641669288791094655554785194040263065748867150582068190890200070838367627385484581771153176447"
    "5730270069855571366959622842914819860834936475292719074168444365510704342711559699508093042880177904"
    "174497792";
static const char zero_digits[] =
    "2470328229206232720882843964341106861825299013071623822127928412503377536351043759326499181808179961"
    "8989828234772285886546332835517796989819938739800539093906315035659515570226392290858392449105184435"
    "9318028499365361525003193704576782492193656236698636584807570015857692699037063119282795585513329278"
    "3433840935197801553124659726357957462276646527282722005637400648549997709659947045402082816622623785"
    "7393450736339007967761930577506740176324673600968951340535537458516661134223766678604162159680461914"
    "4672918403005300575308490487653917113865916462395249126236538818796362393732804238910186723484976682"
    "3508986338858792562830275599565752445550725518931369083625477918694866799496832404970582102851318545"
    "1396213837722826145437693412532098591327667236328125";
enum { INFINITE_POWER = 309, ZERO_POWER = -323 };

/* Compare the magnitude of the number `text` with 0.DIGITS times ten to the power: below 0, 0 or above 0. */
static int compare_decimal(const char *text, size_t length, const char *digits, int64_t power) {
    const char *end = text + length, *exponent = text;
    while (exponent < end && *exponent != 'e' && *exponent != 'E')
        exponent++;
    int64_t own_power = 0;
    for (const char *c = exponent; c < end; c++)
        if (*c >= '0' && *c <= '9' && own_power < INT32_MAX)
            own_power = own_power * 10 + (*c - '0');
    if (exponent + 1 < end && exponent[1] == '-')
        own_power = -own_power;
    /* From its first digit other than 0 on, the integer part raises the power; zeros after the point lower it. */
    bool fraction = false, begun = false;
    int order = 0;
    for (; text < exponent; text++) {
        fraction = fraction || *text == '.';
        if (*text < '0' || *text > '9')
            continue;
        begun = begun || *text != '0';
        own_power += begun ? !fraction : -(int64_t)fraction;
        if (begun && order == 0)
            order = *text - (*digits != '\0' ? *digits : '0');
        digits += begun && *digits != '\0';
    }
    if (!begun)
        return -1;
    if (own_power != power)
        return own_power < power ? -1 : 1;
    return order != 0 ? order : *digits != '\0' ? -1 : 0;
}

static ddct_status parse_number(parser *p) {
    uint32_t node = add_node(p, DDCT_JSON_INTEGER);
    bool minus = peek(p) == '-', nonzero = false, ignored = false;
    if (minus)
        p->position++;
    unsigned char first = peek(p);
    size_t start = p->position, digits = skip_digits(p, &nonzero);
    if (digits == 0 || (first == '0' && digits > 1))
        return refuse(p, "malformed number");
    if (peek(p) == '.') {
        p->nodes[node].type = DDCT_JSON_DECIMAL;
        p->position++;
        if (skip_digits(p, &nonzero) == 0)
            return refuse(p, "malformed number");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        p->nodes[node].type = DDCT_JSON_DECIMAL;
        p->position++;
        if (peek(p) == '+' || peek(p) == '-')
            p->position++;
        if (skip_digits(p, &ignored) == 0)
            return refuse(p, "malformed number");
    }
    if (p->nodes[node].type == DDCT_JSON_INTEGER) {
        uint64_t value = 0;
        for (size_t i = start; i < p->position && value <= MAX_INTEGER; i++)
            value = value * 10 + (uint64_t)(p->text[i] - '0');
        if (value > MAX_INTEGER)
            return refuse(p, "integer beyond 2^53 - 1");
    }
    const char *text = (const char *)p->text + p->nodes[node].offset;
    size_t length = p->position - p->nodes[node].offset;
    p->nodes[node].length = (uint32_t)length;
    p->nodes[node].negative = minus && nonzero;
    if (p->nodes[node].type == DDCT_JSON_DECIMAL) {
        if (compare_decimal(text, length, infinite_digits, INFINITE_POWER) >= 0)
            return refuse(p, "number that is not finite");
        if (minus)
            p->nodes[node].negative = compare_decimal(text, length, zero_digits, ZERO_POWER) > 0;
    }
    return DDCT_OK;
}

static ddct_status parse_word(parser *p, const char *word, ddct_json_type type) {
    size_t length = strlen(word);
    if (p->size - p->position < length || memcmp(p->text + p->position, word, length) != 0)
        return refuse(p, "unknown word");
    add_node(p, type);
    p->position += length;
    return DDCT_OK;
}

static int compare_names(const void *context, uint32_t a, uint32_t b) {
    const parser *p = context;
    const ddct_json_node *left = &p->nodes[a], *right = &p->nodes[b];
    if (left->length != right->length)
        return left->length < right->length ? -1 : 1;
    return memcmp(p->text + left->offset, p->text + right->offset, left->length);
}

static ddct_status check_distinct_names(parser *p, uint32_t object) {
    uint32_t count = p->nodes[object].length, small[16];
    if (count < 2)
        return DDCT_OK;
    uint32_t *names = small;
    if (count > 16 && (names = ddct_allocate(p->memory, count, sizeof *names, p->error)) == NULL)
        return DDCT_BUDGET;
    uint32_t node = object + 1;
    for (uint32_t i = 0; i < count; i++) {
        names[i] = node;
        node = p->nodes[node + 1].end;
    }
    ddct_sort(names, count, compare_names, p);
    bool distinct = true;
    for (uint32_t i = 1; i < count; i++)
        distinct = distinct && compare_names(p, names[i - 1], names[i]) != 0;
    if (names != small)
        ddct_release(p->memory, names);
    return distinct ? DDCT_OK : refuse(p, "duplicate name in the object that ends");
}

/* One value that is no container, or the opening of a container. */
static ddct_status parse_scalar_or_open(parser *p) {
    switch (peek(p)) {
    case '{': add_node(p, DDCT_JSON_OBJECT); p->position++; return DDCT_OK;
    case '[': add_node(p, DDCT_JSON_ARRAY); p->position++; return DDCT_OK;
    case '"': return parse_string(p);
    case 't': return parse_word(p, "true", DDCT_JSON_TRUE);
    case 'f': return parse_word(p, "false", DDCT_JSON_FALSE);
    case 'n': return parse_word(p, "null", DDCT_JSON_NULL);
    default: return parse_number(p);
    }
}

static ddct_status parse_member_name(parser *p) {
    if (peek(p) != '"')
        return refuse(p, "a name is missing");
    ddct_status status = parse_string(p);
    if (status != DDCT_OK)
        return status;
    skip_space(p);
    if (peek(p) != ':')
        return refuse(p, "a colon is missing");
    p->position++;
    skip_space(p);
    return DDCT_OK;
}

static ddct_status parse_document(parser *p) {
    uint32_t open[MAX_DEPTH];
    int depth = 0;
    for (;;) {
        /* A value begins here; in an object, a name first. */
        ddct_status status = DDCT_OK;
        skip_space(p);
        if (depth > 0 && p->nodes[open[depth - 1]].type == DDCT_JSON_OBJECT)
            status = parse_member_name(p);
        uint32_t node = p->count;
        if (status == DDCT_OK)
            status = parse_scalar_or_open(p);
        if (status != DDCT_OK)
            return status;
        if (depth > 0)
            p->nodes[open[depth - 1]].length++;
        uint8_t type = p->nodes[node].type;
        bool opened = type == DDCT_JSON_OBJECT || type == DDCT_JSON_ARRAY;
        if (opened) {
            if (depth == MAX_DEPTH)
                return refuse(p, "nested more than 16 deep");
            open[depth++] = node;
        }
        /* Close containers; then either a comma or the end of the document follows. */
        for (;;) {
            skip_space(p);
            if (depth == 0)
                return p->position == p->size ? DDCT_OK : refuse(p, "bytes after the value");
            uint32_t container = open[depth - 1];
            bool object = p->nodes[container].type == DDCT_JSON_OBJECT;
            if (peek(p) == (object ? '}' : ']')) {
                p->position++;
                p->nodes[container].end = p->count;
                if (object && (status = check_distinct_names(p, container)) != DDCT_OK)
                    return status;
                depth--;
                opened = false;
                continue;
            }
            if (opened)
                break; /* the first value of a container */
            if (peek(p) != ',')
                return refuse(p, "a comma or a closing bracket is missing");
            p->position++;
            break;
        }
    }
}

ddct_status ddct_json_parse(char *text, size_t size, ddct_memory *memory, ddct_json *json, ddct_error *error) {
    parser p = {.text = (unsigned char *)text, .size = size, .memory = memory, .error = error};
    /* Each value but the first, and each name, follows a bracket, a comma or a colon. */
    uint64_t most = 1;
    for (size_t i = 0; i < size; i++)
        most += text[i] == ',' || text[i] == ':' || text[i] == '[' || text[i] == '{';
    p.nodes = ddct_allocate(memory, most, sizeof *p.nodes, error);
    if (p.nodes == NULL)
        return DDCT_BUDGET;
    ddct_status status = parse_document(&p);
    if (status != DDCT_OK) {
        ddct_release(memory, p.nodes);
        return status;
    }
    *json = (ddct_json){.text = text, .nodes = p.nodes, .count = p.count};
    return DDCT_OK;
}

int64_t ddct_json_integer(const ddct_json *json, uint32_t node) {
    const char *text = json->text + json->nodes[node].offset;
    int64_t value = 0;
    for (uint32_t i = 0; i < json->nodes[node].length; i++)
        if (text[i] != '-')
            value = value * 10 + (text[i] - '0');
    return json->nodes[node].negative ? -value : value;
}

bool ddct_json_equals(const ddct_json *json, uint32_t node, const char *text) {
    size_t length = strlen(text);
    return json->nodes[node].type == DDCT_JSON_STRING && json->nodes[node].length == length &&
           memcmp(json->text + json->nodes[node].offset, text, length) == 0;
}
