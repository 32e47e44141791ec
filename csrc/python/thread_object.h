// Objects of Python that own threads, such as SlotFiller.
//
// One can be closed from any thread and more than once; what it points at is freed with the object,
// when no call can be in it any more. In a process that was forked from its owner there are no
// threads to wait for.

#ifndef FASTCKPT_PYTHON_THREAD_OBJECT_H_
#define FASTCKPT_PYTHON_THREAD_OBJECT_H_

#include <unistd.h>

#include <atomic>
#include <new>

#include "common.h"

namespace fastckpt {
namespace python {

// The threads of a state. The last member of it: they end before what they work on goes.
class OwnedThreads {
 public:
  // Where no thread can be had, whoever waits does the work.
  void Start(Job* job, long threads) {
    has_threads_ = workers_.Start(job, static_cast<int>(threads)).ok();
  }

  // `stop` tells the threads to end; it is called at most once, without the GIL.
  template <typename Stop>
  void Close(Stop stop) {
    if (closed_.exchange(true) || !IsOwner()) return;
    const WithoutGil without_gil;
    stop();
    workers_.Join();
  }

  bool has_threads() const { return has_threads_; }
  bool closed() const { return closed_; }
  bool IsOwner() const { return getpid() == owner_; }

 private:
  Workers workers_;
  bool has_threads_ = false;
  std::atomic<bool> closed_{false};
  const pid_t owner_ = getpid();
};

// A State has `threads` and Close(); beside it stands Start(State*, arguments, keywords), which is
// false with a Python exception set.
template <typename State>
struct ThreadObject {
  PyObject_HEAD
  State* state;
};

template <typename State>
State* StateOf(PyObject* self) {
  return reinterpret_cast<ThreadObject<State>*>(self)->state;
}

template <typename State>
PyObject* NewThreadObject(PyTypeObject* type, PyObject* arguments, PyObject* keywords) {
  const auto allocate = reinterpret_cast<allocfunc>(PyType_GetSlot(type, Py_tp_alloc));
  PyObject* const self = allocate(type, 0);
  if (self == nullptr) return nullptr;
  bool started = false;
  try {
    reinterpret_cast<ThreadObject<State>*>(self)->state = new State;
    started = Start(StateOf<State>(self), arguments, keywords);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  if (started) return self;
  Py_DECREF(self);
  return nullptr;
}

template <typename State>
void FreeThreadObject(PyObject* self) {
  State* const state = StateOf<State>(self);
  if (state != nullptr) {
    state->Close();
    // Destroying threads that another process runs would end this one: they are left alone.
    if (state->threads.IsOwner()) delete state;
  }
  PyTypeObject* const type = Py_TYPE(self);
  reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free))(self);
  Py_DECREF(type);
}

template <typename State>
PyObject* CloseThreadObject(PyObject* self, PyObject*) {
  StateOf<State>(self)->Close();
  Py_RETURN_NONE;
}

}  // namespace python
}  // namespace fastckpt

#endif  // FASTCKPT_PYTHON_THREAD_OBJECT_H_
