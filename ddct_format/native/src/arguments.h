/* What the Python-facing parts share. They parse arguments with "y*" (bytes to read) and "w*" (bytes to write), check
 * every size, and let other threads run while they compute. */
#ifndef DDCT_ARGUMENTS_H
#define DDCT_ARGUMENTS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Work on fewer bytes than this keeps the lock: giving it up and waiting for it would take longer. */
enum { WORTH_UNLOCKING = 1 << 15 };

#define WITHOUT_LOCK(BYTES, ...)                                                                                    \
    do {                                                                                                            \
        PyThreadState *suspended = (uint64_t)(BYTES) >= WORTH_UNLOCKING ? PyEval_SaveThread() : NULL;               \
        __VA_ARGS__;                                                                                                \
        if (suspended != NULL)                                                                                      \
            PyEval_RestoreThread(suspended);                                                                        \
    } while (0)

/* Before any other function. */
void choose_best_instruction_set(void);
void prepare_checksums(void);

extern PyMethodDef block_methods[], dctq_methods[], digest_methods[], encode_methods[], encode_ulp_methods[],
    inflate_methods[], instruction_set_methods[], split_methods[], symbol_methods[], ulp_methods[];

#endif
