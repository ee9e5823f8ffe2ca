package cron_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"kiln/internal/cron"
)

func parse(t testing.TB, expr string) cron.Schedule {
	t.Helper()
	s, err := cron.Parse(expr)
	if err != nil {
		t.Fatalf("Parse(%q) = %v", expr, err)
	}
	return s
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestNextOverShiftsOfTheClock(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ zone, expr, after, want string }{
		// Put forward from 02:00 to 03:00 on 29 March 2026, back from 03:00 to 02:00 on 25 October 2026.
		{"Europe/Berlin", "30 2 * * *", "2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00"},
		{"Europe/Berlin", "30 2 * * *", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"},
		{"Europe/Berlin", "0,30 2,3 * * *", "2026-03-29T01:59:00+01:00", "2026-03-29T03:00:00+02:00"},
		{"Europe/Berlin", "0,30 2,3 * * *", "2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"},
		{"Europe/Berlin", "30 2 * * *", "2026-10-24T12:00:00+02:00", "2026-10-25T02:30:00+02:00"},
		{"Europe/Berlin", "30 2 * * *", "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"},
		{"Europe/Berlin", "*/30 * * * *", "2026-10-25T02:30:00+02:00", "2026-10-25T03:00:00+01:00"},
		{"Europe/Berlin", "45 2 * * *", "2026-10-25T02:10:00+01:00", "2026-10-26T02:45:00+01:00"},
		// Midnight itself did not exist.
		{"America/Sao_Paulo", "0 0 * * *", "2018-11-03T12:00:00-03:00", "2018-11-04T01:00:00-02:00"},
		// Half an hour.
		{"Australia/Lord_Howe", "15 2 * * *", "2026-10-03T12:00:00+10:30", "2026-10-04T02:30:00+11:00"},
		// A whole day was left out.
		{"Pacific/Apia", "0 12 30 12 *", "2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00"},
	} {
		loc := zone(t, c.zone)
		after, err := time.Parse(time.RFC3339, c.after)
		if err != nil {
			t.Fatal(err)
		}
		if got := parse(t, c.expr).Next(after, loc).Format(time.RFC3339); got != c.want {
			t.Errorf("%s: %q after %s = %s, want %s", c.zone, c.expr, c.after, got, c.want)
		}
	}
}

func TestRareDays(t *testing.T) {
	t.Parallel()
	day := func(y, m, d int) time.Time { return time.Date(y, time.Month(m), d, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		expr        string
		after, want time.Time
	}{
		{"0 0 29 2 *", day(2025, 1, 1), day(2028, 2, 29)},
		{"0 0 29 2 *", day(2096, 3, 1), time.Time{}}, // 2100 is no leap year
		{"0 0 31 * *", day(2026, 1, 31), day(2026, 3, 31)},
		{"0 0 13 * fri", day(2026, 3, 14), day(2026, 11, 13)}, // both must match
		{"0 0 29 2 mon", day(2025, 1, 1), time.Time{}},
		{"59 23 31 12 *", day(2026, 1, 1), time.Date(2026, 12, 31, 23, 59, 0, 0, time.UTC)},
	} {
		if got := parse(t, c.expr).Next(c.after, nil); !got.Equal(c.want) {
			t.Errorf("%q after %v = %v, want %v", c.expr, c.after, got, c.want)
		}
	}
	if got := (cron.Schedule{}).Next(day(2026, 1, 1), nil); !got.IsZero() {
		t.Errorf("the zero schedule is due at %v", got)
	}
}

// brute lists when s is due in [from, to), minute by minute, by its text alone.
func brute(expr string, from, to time.Time, loc *time.Location) []time.Time {
	var allowed [5][60]bool
	for i, f := range strings.Fields(expr) {
		for v := range 60 {
			allowed[i][v] = slices.ContainsFunc(strings.Split(f, ","), func(item string) bool { return matchesItem(item, v) })
		}
	}
	matches := func(w time.Time) bool {
		return allowed[0][w.Minute()] && allowed[1][w.Hour()] && allowed[2][w.Day()] && allowed[3][w.Month()] && allowed[4][w.Weekday()]
	}
	naive := func(t time.Time) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), 0, 0, time.UTC)
	}
	const lead = 26 * time.Hour // more than any zone repeats
	var due []time.Time
	last := from.Add(-lead).In(loc)
	base := naive(last).Unix()
	seen := make([]bool, int(to.Sub(from)+2*lead+25*time.Hour)/int(time.Minute))
	for at := last; at.Before(to); at = at.Add(time.Minute).In(loc) {
		hit := false
		// All that the wall clock left out since the minute before is due now, and what it shows the first time.
		for w := naive(last).Add(time.Minute); !w.After(naive(at)); w = w.Add(time.Minute) {
			i := (w.Unix() - base) / 60
			if i >= 0 && !seen[i] {
				seen[i], hit = true, hit || matches(w)
			}
		}
		if hit && !at.Before(from) {
			due = append(due, at)
		}
		last = at
	}
	return due
}

func matchesItem(item string, v int) bool {
	var a, b, step int
	switch {
	case item == "*":
		return true
	case strings.HasPrefix(item, "*/"):
		if _, err := fmt.Sscanf(item, "*/%d", &step); err != nil {
			return false
		}
		return v%step == 0
	case strings.Contains(item, "-"):
		if _, err := fmt.Sscanf(item, "%d-%d", &a, &b); err != nil {
			return false
		}
		return a <= v && v <= b
	}
	if _, err := fmt.Sscanf(item, "%d", &a); err != nil {
		return false
	}
	return v == a
}

// randomExpr writes expressions that are due often enough to be seen in a few days.
func randomExpr(r *rand.Rand) string {
	pick := func(options ...string) string { return options[r.IntN(len(options))] }
	n := func(from, to int) string { return fmt.Sprint(from + r.IntN(to-from+1)) }
	return strings.Join([]string{
		pick("*", "*/"+n(1, 30), n(0, 59), n(0, 29)+","+n(30, 59), n(0, 20)+"-"+n(21, 59)),
		pick("*", "*", n(0, 3), n(0, 23), "1,2,3", "*/"+n(1, 6), n(0, 2)+"-"+n(3, 23)),
		pick("*", "*", "*", n(1, 14)+"-"+n(15, 31)), "*",
		pick("*", "*", "0", n(0, 3)+"-"+n(4, 6)),
	}, " ")
}

func TestNextAgreesWithAWalkByTheMinute(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	for _, w := range []struct {
		zone string
		from time.Time
	}{
		{"UTC", time.Date(2024, 2, 27, 0, 0, 0, 0, time.UTC)},
		{"Europe/Berlin", time.Date(2026, 3, 28, 0, 0, 0, 0, time.UTC)},
		{"Europe/Berlin", time.Date(2026, 10, 24, 0, 0, 0, 0, time.UTC)},
		{"America/New_York", time.Date(2026, 3, 7, 0, 0, 0, 0, time.UTC)},
		{"America/New_York", time.Date(2026, 10, 31, 0, 0, 0, 0, time.UTC)},
		{"America/Sao_Paulo", time.Date(2018, 11, 3, 0, 0, 0, 0, time.UTC)},
		{"America/Sao_Paulo", time.Date(2018, 2, 17, 0, 0, 0, 0, time.UTC)},
		{"Australia/Lord_Howe", time.Date(2026, 4, 4, 0, 0, 0, 0, time.UTC)},
		{"Australia/Lord_Howe", time.Date(2026, 10, 3, 0, 0, 0, 0, time.UTC)},
		{"Pacific/Apia", time.Date(2011, 12, 29, 0, 0, 0, 0, time.UTC)},
		{"Africa/Casablanca", time.Date(2026, 2, 14, 0, 0, 0, 0, time.UTC)},
		{"Africa/Cairo", time.Date(2026, 4, 23, 0, 0, 0, 0, time.UTC)},
		{"Asia/Kathmandu", time.Date(2100, 2, 27, 0, 0, 0, 0, time.UTC)},
	} {
		loc, to := zone(t, w.zone), w.from.Add(50*time.Hour)
		for range 4 {
			expr := randomExpr(r)
			s, want := parse(t, expr), brute(expr, w.from, to, loc)
			var got []time.Time
			for at := s.Next(w.from.Add(-time.Second), loc); !at.IsZero() && at.Before(to); at = s.Next(at, loc) {
				got = append(got, at)
			}
			if !slices.EqualFunc(got, want, time.Time.Equal) {
				t.Fatalf("%s from %v: %q is due\n%v, want\n%v", w.zone, w.from, expr, got, want)
			}
			checkMissed(t, s, w.from, to, loc, want)
		}
	}
}

// checkMissed compares Missed with the list of all that was due in (from-1s, to).
func checkMissed(t *testing.T, s cron.Schedule, from, to time.Time, loc *time.Location, all []time.Time) {
	t.Helper()
	latest, n := s.Missed(from.Add(-time.Second), to.Add(-time.Second), loc)
	switch {
	case len(all) == 0:
		if n != 0 || !latest.IsZero() {
			t.Fatalf("%q: Missed = %v, %d, want none", s, latest, n)
		}
	case !latest.Equal(all[len(all)-1]) || n != min(len(all), cron.MaxMissed):
		t.Fatalf("%q in %v: Missed = %v, %d, want %v, %d", s, loc, latest, n, all[len(all)-1], len(all))
	}
}

func TestMissedLooksBackABoundedTime(t *testing.T) {
	t.Parallel()
	s, now := parse(t, "0 0 1 1 *"), time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	if latest, n := s.Missed(time.Time{}, now, nil); n != 5 || latest.Year() != 2026 {
		t.Errorf("Missed since ever = %v, %d, want 2026 and five", latest, n)
	}
	if latest, n := s.Missed(now, now.Add(-time.Hour), nil); n != 0 || !latest.IsZero() {
		t.Errorf("Missed with the clock set back = %v, %d, want none", latest, n)
	}
	minutely := parse(t, "* * * * *")
	if latest, n := minutely.Missed(now.AddDate(-1, 0, 0), now, nil); n != cron.MaxMissed || !latest.Equal(now) {
		t.Errorf("Missed in a year = %v, %d, want %v and the most that is counted", latest, n, now)
	}
}

// BenchmarkNext computes the next time of 10,000 different timers.
func BenchmarkNext(b *testing.B) {
	berlin := zone(b, "Europe/Berlin")
	schedules := make([]cron.Schedule, 10_000)
	for i := range schedules {
		schedules[i] = parse(b, fmt.Sprintf("%d %d * * %s", i%60, i/60%24, []string{"*", "1-5", "sun"}[i%3]))
	}
	now := time.Date(2026, 3, 28, 23, 0, 0, 0, time.UTC)
	for b.Loop() {
		for _, s := range schedules {
			if s.Next(now, berlin).IsZero() {
				b.Fatal("never due")
			}
		}
	}
}
