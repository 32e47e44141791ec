// fastckpt._core.planes_encode and planes_decode.

#ifndef FASTCKPT_PYTHON_PLANES_H_
#define FASTCKPT_PYTHON_PLANES_H_

#include "common.h"

namespace fastckpt {
namespace python {

// False with a Python exception set.
bool AddPlanes(PyObject* module);

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_PLANES_H_
