// fastckpt._core.PlanesWriter and planes_read.

#ifndef FASTCKPT_PYTHON_PLANES_FILES_H_
#define FASTCKPT_PYTHON_PLANES_FILES_H_

#include "common.h"

namespace fastckpt {
namespace python {

// False with a Python exception set.
bool AddPlanesFiles(PyObject* module);

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_PLANES_FILES_H_
