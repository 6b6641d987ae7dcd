// maekernels._C_cuda: importing it registers the ops of this folder. Its only attribute is TOOLKIT, e.g. 13000 for
// CUDA 13.0, the version of its kernels and its runtime.
#include <Python.h>

extern "C" const int maekernels_cuda_toolkit;

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda() {
  static PyModuleDef module{PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* made = PyModule_Create(&module);
  if (made && PyModule_AddIntConstant(made, "TOOLKIT", maekernels_cuda_toolkit) < 0) {
    Py_DECREF(made);
    return nullptr;
  }
  return made;
}
