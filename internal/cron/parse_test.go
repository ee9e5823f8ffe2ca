package cron_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"kiln/internal/cron"
)

func TestMistakesArePointedAt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ expr, want string }{
		{"", "column 1: the expression is empty"},
		{"* * * *", "column 8: 4 fields where five are needed"},
		{"0 * * * * *", "column 11: 6 fields where five are needed: there are no fields for seconds"},
		{"@daily", `column 1: "@daily" is not known; write five fields, such as "0 0 * * *"`},
		{"60 * * * *", "column 1: minute: 60 is not from 0 to 59"},
		{"0 24 * * *", "column 3: hour: 24 is not from 0 to 23"},
		{"0 0 0 * *", "column 5: day of month: 0 is not from 1 to 31"},
		{"0 0 * 13 *", "column 7: month: 13 is not from 1 to 12"},
		{"0 0 * * 8", "column 9: day of week: 8 is not from 0 to 7"},
		{"0 0 * * fr", `column 9: day of week: "fr" is neither a number from 0 to 7 nor a name such as sun`},
		{"0 0 * * fryday", `column 9: day of week: "fryday" is neither`},
		{"1,,2 * * * *", "column 3: minute: an item of the list is empty"},
		{"1,2, * * * *", "column 5: minute: an item of the list is empty"},
		{"*/0 * * * *", `column 3: minute: step "0" is not a number from 1 to 59`},
		{"*/x * * * *", `column 3: minute: step "x" is not a number`},
		{"*/ * * * *", `column 3: minute: step "" is not a number`},
		{"5/1 * * * *", "column 1: minute: 5/1 can be read in two ways; write 5, or 5-59"},
		{"0 22-2 * * *", "column 3: hour: the range 22-2 runs backwards; write 22-23,0-2"},
		{"0 0 * * fri-mon", "column 9: day of week: the range fri-mon runs backwards; write fri-6,0-mon"},
		{"5- * * * *", "column 3: minute: a value is missing"},
		{"-5 * * * *", "column 1: minute: a value is missing"},
		{"1x * * * *", `column 1: minute: "1x" is not a number`},
		{"99999999999999999999 * * * *", "column 1: minute: 99999999999999999999 is not from 0 to 59"},
		{"0 0 ? * *", `column 5: day of month: "?" is not part of this syntax`},
		{"0 0 30 2 *", `column 5: day of month: no month of "2" has a day 30`},
		{"0 0 31 4,jun,9,11 *", `column 5: day of month: no month of "4,jun,9,11" has a day 31`},
		{strings.Repeat("*", 600), "column 1: the expression has 600 bytes"},
	} {
		_, err := cron.Parse(c.expr)
		var e *cron.Error
		if !errors.As(err, &e) || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("Parse(%q) = %v, want %s", c.expr, err, c.want)
		}
	}
}

func TestEqualExpressionsAreDueAtTheSameTimes(t *testing.T) {
	t.Parallel()
	for _, c := range [][2]string{
		{"*/15 * * * *", "0,15,30,45 * * * *"},
		{"5/20 * * * *", "5,25,45 * * * *"},
		{"10-30/10 * * * *", "10,20,30 * * * *"},
		{"0 0 * * 0", "0 0 * * 7"},
		{"0 0 * * SUN", "0 0 * * sunday"},
		{"0 0 * * sat-sun", "0 0 * * 0,6"},
		{"0 0 * * 5-7", "0 0 * * 0,5,6"},
		{"0 0 * jan-mar *", "0 0 * 1-3 *"},
		{"0\t0   1 * *  ", "0 0 1 * *"},
		{"0 0 * * */2", "0 0 * * 0,2,4,6"},
	} {
		a, errA := cron.Parse(c[0])
		b, errB := cron.Parse(c[1])
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		bt := at
		for range 100 {
			at, bt = a.Next(at, nil), b.Next(bt, nil)
			if !at.Equal(bt) {
				t.Fatalf("%q is due %v, %q %v", c[0], at, c[1], bt)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"* * * * *", "0 2 * * *", "*/5 1-3 1,15 jan-mar/2 mon-fri", "0 0 29 2 1", "5/7 */3 31 * sun", "0 22-2 * * *", "@daily"} {
		f.Add(s, int64(1_774_746_000))
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, expr string, unix int64) {
		s, err := cron.Parse(expr)
		if err != nil {
			var e *cron.Error
			if !errors.As(err, &e) || e.Col < 1 || e.Col > len(expr)+1 {
				t.Fatalf("Parse(%q) = %v: no place", expr, err)
			}
			return
		}
		if again, err := cron.Parse(s.String()); err != nil || again != s {
			t.Fatalf("Parse(%q) = %v, %v, want the same schedule again", s, again, err)
		}
		now := time.Unix(unix%(1<<33), 0)
		next := s.Next(now, berlin)
		if next.IsZero() {
			return
		}
		if !next.After(now) || next.Second() != 0 {
			t.Fatalf("%q: Next(%v) = %v", expr, now, next)
		}
		if latest, n := s.Missed(now, next, berlin); !latest.Equal(next) || n != 1 {
			t.Fatalf("%q: Missed(%v, %v) = %v, %d, want one", expr, now, next, latest, n)
		}
	})
}
