/* Tests of the parts that can be checked without an archive: digests, kernels against their definitions, the JSON
 * parser. Archives are covered by the conformance tests, which run ddct-cat. */
#include "ddct_digest.h"
#include "ddct_json.h"
#include "ddct_kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void check(bool good, const char *what) {
    if (!good) {
        printf("failed: %s\n", what);
        failures++;
    }
}

static uint32_t random_bits(void) {
    static uint64_t state = 88172645463325252u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static void digests_give_published_values(void) {
    static const uint8_t abc[4] = {0xBA, 0x78, 0x16, 0xBF}, two_blocks[4] = {0x24, 0x8D, 0x6A, 0x61};
    static const char text[] = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
    uint8_t digest[DDCT_DIGEST_SIZE];
    ddct_sha256 hash;
    check(ddct_crc32c("123456789", 9) == 0xE3069283, "crc32c of 123456789");
    ddct_sha256_begin(&hash);
    ddct_sha256_update(&hash, "abc", 3);
    ddct_sha256_end(&hash, digest);
    check(memcmp(digest, abc, sizeof abc) == 0, "sha256 of abc");
    ddct_sha256_begin(&hash);
    for (size_t i = 0; i < sizeof text - 1; i++)
        ddct_sha256_update(&hash, text + i, 1);
    ddct_sha256_end(&hash, digest);
    check(memcmp(digest, two_blocks, sizeof two_blocks) == 0, "sha256 of two blocks, byte by byte");
}

static int32_t basis(ddct_transform transform, uint32_t patch, uint32_t k, uint32_t n) {
    if (transform == DDCT_TRANSFORM_NONE)
        return k == n;
    if (transform == DDCT_TRANSFORM_DCT)
        return k == 0 ? 64 : (int32_t)lround(90 * cos(acos(-1.0) * (2 * n + 1) * k / (2.0 * patch)));
    int32_t sign = 1;
    for (uint32_t bits = k & n; bits != 0; bits &= bits - 1)
        sign = -sign;
    return sign;
}

static bool transform_is_exact(ddct_transform transform, uint32_t patch) {
    static int8_t levels[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    static int32_t values[DDCT_MAX_PATCH * DDCT_MAX_PATCH];
    int64_t half[DDCT_MAX_PATCH][DDCT_MAX_PATCH];
    /* The second round has the signs of the basis, which make the largest sums. */
    for (uint32_t round = 0; round < 2; round++) {
        for (uint32_t i = 0; i < patch * patch; i++) {
            bool negative = (basis(transform, patch, i / patch, 0) < 0) != (basis(transform, patch, i % patch, 0) < 0);
            levels[i] = (int8_t)(round == 0 ? (int32_t)(random_bits() % 255) - 127 : negative ? -127 : 127);
        }
        ddct_inverse_transform(transform, patch, levels, values);
        for (uint32_t k = 0; k < patch; k++)
            for (uint32_t m = 0; m < patch; m++) {
                half[k][m] = 0;
                for (uint32_t j = 0; j < patch; j++)
                    half[k][m] += levels[k * patch + j] * basis(transform, patch, j, m);
            }
        for (uint32_t n = 0; n < patch; n++)
            for (uint32_t m = 0; m < patch; m++) {
                int64_t sum = 0;
                for (uint32_t k = 0; k < patch; k++)
                    sum += basis(transform, patch, k, n) * half[k][m];
                if (sum != values[n * patch + m])
                    return false;
            }
    }
    return true;
}

static void transforms_follow_their_definition(void) {
    for (int transform = DDCT_TRANSFORM_DCT; transform <= DDCT_TRANSFORM_NONE; transform++)
        for (uint32_t patch = 8; patch <= DDCT_MAX_PATCH; patch *= 2)
            check(transform_is_exact((ddct_transform)transform, patch), "inverse transform");
}

static void dense_symbols_survive(void) {
    enum { COUNT = 1000 };
    static const uint32_t per_byte[] = {0, 0, 8, 5, 4, 3, 3, 2};
    for (uint32_t alphabet = 2; alphabet <= 255; alphabet++) {
        uint8_t bytes[COUNT] = {0};
        int8_t levels[256], out[COUNT + 8];
        uint32_t symbols[COUNT], n = ddct_symbols_per_byte(alphabet);
        uint64_t table[256];
        check(alphabet > 7 || n == per_byte[alphabet], "symbols per byte");
        for (uint32_t i = 0; i < alphabet; i++)
            levels[i] = (int8_t)((int32_t)i - 127);
        for (uint32_t i = COUNT; i-- > 0;) {
            symbols[i] = random_bits() % alphabet;
            bytes[i / n] = (uint8_t)(bytes[i / n] * alphabet + symbols[i]);
        }
        check(ddct_dense_valid(bytes, COUNT, alphabet), "dense symbols are valid");
        ddct_dense_table(levels, alphabet, table);
        uint32_t first = random_bits() % 20;
        ddct_unpack_dense(bytes, first, COUNT - first, n, table, out);
        bool equal = true;
        for (uint32_t i = first; i < COUNT; i++)
            equal = equal && out[i - first] == levels[symbols[i]];
        check(equal, "dense symbols");
    }
}

static void results_round_to_even_and_keep_bits(void) {
    static const float nothing = -0.0f, tiny = 0x1p-9f, more = 0x1.8p-8f, infinite = INFINITY;
    uint16_t out, one = 0x3F80, nan = 0xFFA1;
    ddct_apply(DDCT_BF16, &nan, &nothing, DDCT_BF16, &out, 1);
    check(out == 0xFFA1, "a NaN without a delta keeps its bits");
    ddct_apply(DDCT_BF16, &nan, &tiny, DDCT_BF16, &out, 1);
    check(out == 0x7FC0, "a NaN with a delta becomes the quiet NaN");
    ddct_apply(DDCT_BF16, &nan, &nothing, DDCT_F16, &out, 1);
    check(out == 0x7E00, "a NaN in another type becomes the quiet NaN");
    ddct_apply(DDCT_BF16, &one, &tiny, DDCT_BF16, &out, 1);
    check(out == 0x3F80, "a quarter of an ulp is dropped");
    ddct_apply(DDCT_BF16, &one, &more, DDCT_BF16, &out, 1);
    check(out == 0x3F81, "three quarters of an ulp are rounded up");
    ddct_apply(DDCT_BF16, &one, &infinite, DDCT_F16, &out, 1);
    check(out == 0x7C00, "infinity");
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t bits = (uint16_t)h;
        ddct_apply(DDCT_F16, &bits, &nothing, DDCT_F16, &out, 1);
        float wide = ddct_f16_to_f32(bits);
        uint32_t wide_bits;
        uint16_t back;
        memcpy(&wide_bits, &wide, 4);
        ddct_apply(DDCT_F32, &wide_bits, &nothing, DDCT_F16, &back, 1);
        check(out == bits && (back == bits || isnan(wide)), "f16 survives f32");
    }
}

static void json_is_strict(void) {
    static const char *const good[] = {"{}", " [1, -0, 2.5e-3, true, null] ",
                                       "{\"a\":{\"b\":\"\\ud83d\\ude00\\u0000\"}}",
                                       "9007199254740991", "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]"};
    static const char *const bad[] = {"", "{", "[1,]", "{\"a\":1,}", "{\"a\":1,\"\\u0061\":2}", "NaN", "01",
                                      "1.", "+1", "1e", "9007199254740992", "\"\\ud800\"", "\"\x01\"", "\"\xff\"",
                                      "\"\xed\xa0\x80\"", "1 2", "\xef\xbb\xbf{}",
                                      "[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]", "tru", "'a'", "{1:2}", "\"\\x\""};
    for (size_t i = 0; i < sizeof good / sizeof *good + sizeof bad / sizeof *bad; i++) {
        bool expected = i < sizeof good / sizeof *good;
        const char *source = expected ? good[i] : bad[i - sizeof good / sizeof *good];
        ddct_memory memory = ddct_memory_create(NULL);
        ddct_json json = {0};
        char text[128];
        strcpy(text, source);
        ddct_status status = ddct_json_parse(text, strlen(source), &memory, &json, NULL);
        check(status == (expected ? DDCT_OK : DDCT_INVALID), source);
        ddct_release(&memory, json.nodes);
        check(memory.used == 0, "memory is given back");
    }
}

static void numbers_are_compared_as_binary64(void) {
    static const struct {
        const char *text;
        bool finite, negative;
    } cases[] = {{"0e999999999999", true, false},         {"1e308", true, false},
                 {"1.7976931348623158e308", true, false}, {"17976931348623158e292", true, false},
                 {"1.7976931348623159e308", false, false}, {"0.00018e312", false, false},
                 {"0.00017e312", true, false},            {"1e309", false, false},
                 {"1e99999999999999999999", false, false}, {"-1e-99999999999999999999", true, false},
                 {"-2e-324", true, false},                {"-3e-324", true, true},
                 {"-0.0", true, false},                   {"-1.5", true, true},
                 {"-1.8e+308", false, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ddct_memory memory = ddct_memory_create(NULL);
        ddct_json json = {0};
        char text[64];
        strcpy(text, cases[i].text);
        ddct_status status = ddct_json_parse(text, strlen(text), &memory, &json, NULL);
        check(status == (cases[i].finite ? DDCT_OK : DDCT_INVALID), cases[i].text);
        check(status != DDCT_OK || json.nodes[0].negative == cases[i].negative, cases[i].text);
        ddct_release(&memory, json.nodes);
    }
}

int main(void) {
    digests_give_published_values();
    transforms_follow_their_definition();
    dense_symbols_survive();
    results_round_to_even_and_keep_bits();
    json_is_strict();
    numbers_are_compared_as_binary64();
    printf(failures == 0 ? "all tests passed\n" : "%d failures\n", failures);
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
