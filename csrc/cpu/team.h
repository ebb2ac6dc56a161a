// One thread's part in a team that decodes an image together.
//
// Compiled under several instruction sets: the rule that common/steps.h states holds here too.
#pragma once

#include "program.h"
#include "timing.h"

namespace {

// How long work may take, counted from its beginning.
struct Patience {
  double started = 0.0;
  double seconds = 1e30;
  double seconds_per_unit = 0.0;  // more for each unit that is done

  bool over(long units) const { return now() - started > seconds + seconds_per_unit * (double)units; }
};

// A team meets after every step that it shares. A member whose core is busy elsewhere keeps all waiting, so the first
// member may go on alone after any meeting; the others then leave the work at hand, and come back when they are called.
class Membership {
 public:
  Membership(pxfast::Team* team, int member) : team_(team), member_(member), together_(team != nullptr) {
    if (team && first()) team->parted_after = 0;  // nobody meets before the first member calls
  }

  bool first() const { return member_ == 0; }
  bool together() const { return together_; }
  bool left() const { return !first() && !together_; }

  // of the work at hand
  int share() const { return together_ ? member_ : 0; }
  int shares() const { return together_ ? team_->members : 1; }

  // Until the whole team is here, together or not.
  void wait() {
    if (team_) team_->wait(team_);
  }

  // After shared work. enough: the first member wants to go on alone. Returns whether this member goes on.
  bool meet(bool enough) {
    if (!together_) return first();
    ++meetings_;
    if (first() && enough) __atomic_store_n(&team_->parted_after, meetings_, __ATOMIC_RELAXED);
    team_->wait(team_);
    // who reads late finds this meeting's all the same: the next is stored after another one, which this member joins
    together_ = __atomic_load_n(&team_->parted_after, __ATOMIC_RELAXED) != meetings_;
    return together_ || first();
  }

  void part() { together_ = false; }
  void gather() { together_ = team_ != nullptr; }

 private:
  pxfast::Team* team_;
  int member_;
  bool together_;
  long meetings_ = 0;  // of all members alike: who goes on alone meets nobody
};

}  // namespace
