// Package cron computes when a timer is due, from an expression of five fields and a time zone.
//
// The syntax is NCrontab's, as in Azure Container Registry: minute, hour, day of month, month and day of
// week; each is *, a value, a range a-b, any of these with a /step, or a comma-separated list. Months
// and days of the week may be English names of three letters or more. A day must match the day of month
// and the day of week: "0 0 13 * fri" is due on Friday the 13th only, not on every 13th and every Friday
// as in Unix cron. Sunday is 0, and also 7. A range that runs backwards is refused, because programs
// disagree about what it means.
//
// A schedule names times on the wall clock of a zone. One that does not exist, because the clock is put
// forward over it, is due once, at the moment of the shift, together with all others in the gap. One that
// exists twice, because the clock is put back, is due the first time only. So a nightly timer fires every
// night exactly once, and a timer of every few minutes rests while the clock repeats an hour: use UTC,
// the default, for those.
//
// The package is pure: it never asks what time it is.
package cron

import (
	"math/bits"
	"time"
)

// Horizon is how many years ahead Next looks, to the end of the month.
const Horizon = 5

// MaxMissed is where Missed stops to count.
const MaxMissed = 1000

// A Schedule is a parsed expression. The zero Schedule is never due. Schedules may be compared with ==
// and used concurrently.
type Schedule struct {
	expr                                   string
	minutes, hours, days, months, weekdays uint64 // bit n: the value n
}

// String returns the expression, its fields separated by single spaces.
func (s Schedule) String() string { return s.expr }

// Next returns the first time after a moment at which the schedule is due by the wall clock of loc (nil
// means UTC), or the zero time if there is none within the next five years.
func (s Schedule) Next(after time.Time, loc *time.Location) time.Time {
	if loc == nil {
		loc = time.UTC
	}
	wall := wallOf(after.In(loc))
	for w, ok := s.nextWall(wall.after(), wall.year+Horizon); ok; w, ok = s.nextWall(w.after(), wall.year+Horizon) {
		// What the wall clock shows a second time was due the first time.
		if t := w.in(loc); t.After(after) {
			return t
		}
	}
	return time.Time{}
}

// Missed returns the latest time after last and not after now at which the schedule was due, and how
// often it was due in that interval; it counts to MaxMissed. It returns the zero time and 0 if it was
// not due, and looks back five years at most.
func (s Schedule) Missed(last, now time.Time, loc *time.Location) (latest time.Time, n int) {
	if oldest := now.AddDate(-Horizon, 0, 0); last.Before(oldest) {
		last = oldest
	}
	due := func(from time.Time) bool {
		next := s.Next(from, loc)
		return !next.IsZero() && !next.After(now)
	}
	if !last.Before(now) || !due(last) {
		return time.Time{}, 0
	}
	// It was due after lo and not after hi: halve the interval until one occurrence is left.
	lo, hi := last, now
	for hi.Sub(lo) > time.Second {
		mid := lo.Add(hi.Sub(lo) / 2)
		if due(mid) {
			lo = mid
		} else {
			hi = mid
		}
	}
	latest = s.Next(lo, loc)
	for t := s.Next(last, loc); n < MaxMissed; t = s.Next(t, loc) {
		n++
		if !t.Before(latest) {
			break
		}
	}
	return latest, n
}

// A wall is what a clock on the wall shows, to the minute.
type wall struct{ year, month, day, hour, minute int }

func wallOf(t time.Time) wall {
	y, m, d := t.Date()
	return wall{y, int(m), d, t.Hour(), t.Minute()}
}

// after returns the minute that follows; it may be written as the 60th of an hour.
func (w wall) after() wall {
	w.minute++
	return w
}

// nextWall returns the first wall time from w on that the fields allow, up to the same month of the last year.
func (s Schedule) nextWall(w wall, lastYear int) (wall, bool) {
	if s.minutes == 0 || s.hours == 0 {
		return wall{}, false
	}
	hour, minute, ok := s.nextClock(w.hour, w.minute)
	if !ok || !s.onDay(w) {
		hour, minute = bits.TrailingZeros64(s.hours), bits.TrailingZeros64(s.minutes)
		w.day++
	}
	last := wall{year: lastYear, month: w.month, day: 31}
	for y, m, d := w.year, w.month, w.day; y < last.year || y == last.year && m <= last.month; d = 1 {
		if day := s.nextDay(y, m, d); day > 0 {
			return wall{y, m, day, hour, minute}, true
		}
		if m++; m > 12 {
			y, m = y+1, 1
		}
	}
	return wall{}, false
}

// nextClock returns the first time of day from hour:minute on.
func (s Schedule) nextClock(hour, minute int) (h, m int, ok bool) {
	if hour < 24 && s.hours&(1<<hour) != 0 && minute < 60 {
		if rest := s.minutes >> minute << minute; rest != 0 {
			return hour, bits.TrailingZeros64(rest), true
		}
	}
	rest := s.hours >> (hour + 1) << (hour + 1)
	if rest == 0 {
		return 0, 0, false
	}
	return bits.TrailingZeros64(rest), bits.TrailingZeros64(s.minutes), true
}

// onDay reports whether the fields allow the day of w.
func (s Schedule) onDay(w wall) bool { return s.nextDay(w.year, w.month, w.day) == w.day }

// nextDay returns the first day from day on that the fields allow in a month, or 0.
func (s Schedule) nextDay(year, month, day int) int {
	if s.months&(1<<month) == 0 {
		return 0
	}
	weekday := int(time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).Weekday())
	for n := daysIn(year, month); day <= n; day++ {
		if s.days&(1<<day) != 0 && s.weekdays&(1<<weekday) != 0 {
			return day
		}
		if weekday++; weekday == 7 {
			weekday = 0
		}
	}
	return 0
}

func daysIn(year, month int) int {
	if month == 2 && (year%4 != 0 || year%100 == 0 && year%400 != 0) {
		return 28
	}
	return longest[month]
}

// in returns the moment when a clock in loc shows w for the first time, or, if it never does, the moment
// at which it is put forward over w.
func (w wall) in(loc *time.Location) time.Time {
	t := time.Date(w.year, time.Month(w.month), w.day, w.hour, w.minute, 0, 0, loc)
	if loc == time.UTC {
		return t
	}
	naive := time.Date(w.year, time.Month(w.month), w.day, w.hour, w.minute, 0, 0, time.UTC).Unix()
	start, end := t.ZoneBounds()
	if wallOf(t) != w {
		for _, shift := range []time.Time{start, end} {
			if before, after := offsets(shift); !shift.IsZero() && shift.Unix()+before <= naive && naive < shift.Unix()+after {
				return shift
			}
		}
		return t
	}
	if before, _ := offsets(start); !start.IsZero() && naive-before < start.Unix() {
		return time.Unix(naive-before, 0).In(loc)
	}
	return t
}

// offsets returns the seconds east of UTC before and after a shift of the clock.
func offsets(shift time.Time) (before, after int64) {
	if shift.IsZero() {
		return 0, 0
	}
	_, b := shift.Add(-time.Second).Zone()
	_, a := shift.Zone()
	return int64(b), int64(a)
}
