/* Which version of the kernels runs. */
#include "arguments.h"
#include "kernels.h"

#include <string.h>

#if HAVE_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { PORTABLE, AVX2, AVX512, VBMI2, AMX, LEVELS };

static const char *const names[LEVELS] = {"portable", "avx2", "avx512", "vbmi2", "amx"};
static int chosen = -1; /* set under the interpreter's lock, before any kernel runs */

static bool is_usable(int level) {
#if HAVE_X86_LEVELS
    __builtin_cpu_init();
    if (level == AVX2)
        return __builtin_cpu_supports("avx2");
    if (level == AVX512)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    if (level == VBMI2)
        return is_usable(AVX512) && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
               __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
#endif
#if HAVE_AMX
    unsigned eax, ebx, ecx, edx;
    if (level == AMX) /* products of bfloat16, tiles, products of bytes */
        return is_usable(VBMI2) && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && edx >> 22 & 1 && edx >> 24 & 1 && edx >> 25 & 1;
#endif
    return level == PORTABLE;
}

#if HAVE_AMX
bool tiles_are_permitted(void) {
    enum { UNKNOWN, PERMITTED, REFUSED, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    static int answer = UNKNOWN; /* all threads get the same */
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (known == UNKNOWN) {
        known = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 ? PERMITTED : REFUSED;
        __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    }
    return known == PERMITTED;
}
#endif

static int best_level(void) {
    int level = LEVELS - 1;
    while (!is_usable(level))
        level--;
    return level;
}

const kernel_table *kernels(void) {
#if HAVE_X86_LEVELS
    if (chosen == AVX2)
        return &kernels_avx2;
    if (chosen == AVX512)
        return &kernels_avx512;
    if (chosen == VBMI2)
        return &kernels_vbmi2;
#endif
#if HAVE_AMX
    if (chosen == AMX)
        return &kernels_amx;
#endif
    return &kernels_portable;
}

void choose_best_instruction_set(void) { chosen = best_level(); }

static PyObject *instruction_sets(PyObject *module, PyObject *ignored) {
    (void)module;
    (void)ignored;
    PyObject *list = PyList_New(0);
    for (int level = 0; list != NULL && level < LEVELS; level++) {
        if (!is_usable(level))
            continue;
        PyObject *name = PyUnicode_FromString(names[level]);
        if (name == NULL || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

static PyObject *use_instruction_set(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name;
    if (!PyArg_ParseTuple(arguments, "s", &name))
        return NULL;
    for (int level = 0; level < LEVELS; level++)
        if (strcmp(names[level], name) == 0 && is_usable(level)) {
            const char *before = names[chosen];
            chosen = level;
            return PyUnicode_FromString(before);
        }
    PyErr_Format(PyExc_ValueError, "this machine has no instruction set %s", name);
    return NULL;
}

PyMethodDef instruction_set_methods[] = {
    {"instruction_sets", instruction_sets, METH_NOARGS, NULL},
    {"use_instruction_set", use_instruction_set, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
