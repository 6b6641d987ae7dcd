// maekernels._C_cuda: importing it registers the ops of this folder; it has nothing else.
#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
  static PyModuleDef module{PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
