// `import maekernels._C` registers the ops of this folder for the CPU; the module itself is empty.
#include <Python.h>

#include <exception>

#include "loops.h"

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  try {
    maekernels::instruction_set();  // report a wrong MAEKERNELS_CPU_ISA here and not in the first op
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  return PyModule_Create(&definition);
}
