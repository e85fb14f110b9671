/* The extension module ddct_format.native._core: gathers the functions of all parts. See ddct_format/native/_core.pyi
 * for what each does. A new part adds its method table here, to arguments.h and to pyproject.toml. */
#include "arguments.h"

static PyMethodDef *const parts[] = {
    block_methods,      dctq_methods,    digest_methods,          encode_methods,
    encode_ulp_methods, inflate_methods, instruction_set_methods, split_methods,
    symbol_methods,     ulp_methods,
};

static int add_functions(PyObject *module) {
    choose_best_instruction_set();
    prepare_checksums();
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++)
        if (PyModule_AddFunctions(module, parts[i]) < 0)
            return -1;
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_functions}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_doc = "Arithmetic and checks of the codecs, in C.",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&definition); }
