// fastckpt._core.parity_tally: parity and digests of a file, summed up while it is written.

#ifndef FASTCKPT_PYTHON_PARITY_TALLY_H_
#define FASTCKPT_PYTHON_PARITY_TALLY_H_

#include "../core/parity_tally.h"
#include "common.h"

namespace fastckpt {
namespace python {

// A tally that a job adds to. It stays as long as this does.
class TallyInUse {
 public:
  TallyInUse() = default;
  ~TallyInUse() { Py_XDECREF(object_); }
  TallyInUse(const TallyInUse&) = delete;
  TallyInUse& operator=(const TallyInUse&) = delete;

  // What Python has of one, or None. False with a Python exception set.
  bool Get(PyObject* object);

  ParityTally* get() const { return tally_; }

 private:
  PyObject* object_ = nullptr;
  ParityTally* tally_ = nullptr;
};

// False with a Python exception set.
bool AddParityTally(PyObject* module);

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_PARITY_TALLY_H_
