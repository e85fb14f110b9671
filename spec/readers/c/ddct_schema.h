/* Reading typed values out of the metadata, keeping the first breach in file order. */
#ifndef DDCT_SCHEMA_H
#define DDCT_SCHEMA_H

#include "ddct_json.h"

/* Readers go on after a breach, so that of several the one that comes first in the file is reported. After any
 * breach, what was read is not to be used. */
typedef struct ddct_schema {
    const ddct_json *json;
    ddct_error *error;
    ddct_status status;
    uint64_t breach;    /* its place in the file: twice its node, plus one for the end of an object */
    const char *tensor; /* name of the tensor that is being read, or NULL */
} ddct_schema;

#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
void ddct_breach(ddct_schema *schema, uint32_t node, ddct_status status, const char *format, ...);

/* The same for rules that apply at the end of an object; to be called after what is inside has been read. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
void ddct_breach_at_end(ddct_schema *schema, uint32_t object, const char *format, ...);

/* Values that are not looked at more closely hold no numbers with a fraction or an exponent either. */
void ddct_check_fractions(ddct_schema *schema, uint32_t node);

/* Find the members of the object `node`: values[i] becomes the node of the value of names[i], or 0 if it is absent.
 * Other names are a breach unless they begin with "x-". */
bool ddct_read_object(ddct_schema *schema, uint32_t node, const char *what, const char *const *names, uint32_t total,
                      uint32_t *values);

/* The end of an object: are the first `required` of the names there? */
void ddct_require(ddct_schema *schema, uint32_t node, const char *what, const char *const *names, uint32_t required,
                  const uint32_t *values);

/* The functions below do nothing if `node` is 0 (absent), and report a value of another kind as a breach. */
bool ddct_read_array(ddct_schema *schema, uint32_t node, const char *what, uint32_t least, uint32_t most);
uint64_t ddct_read_integer(ddct_schema *schema, uint32_t node, const char *what, uint64_t least, uint64_t most);
int32_t ddct_read_level(ddct_schema *schema, uint32_t node, int32_t least, int32_t most);
const char *ddct_read_text(ddct_schema *schema, uint32_t node, const char *what, uint32_t most);
void ddct_read_digest(ddct_schema *schema, uint32_t node, const char *what, uint8_t digest[DDCT_DIGEST_SIZE]);
const char *ddct_read_error_number(ddct_schema *schema, uint32_t node); /* section 5.5 */
const char *ddct_read_tensor_name(ddct_schema *schema, uint32_t node);  /* section 5.1 */
const char *ddct_read_path(ddct_schema *schema, uint32_t node);         /* section 5.4 */

#endif
