package index

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestTableIsThatOfTheModel puts rows of random runs into a table, in any order and often the same, takes some
// out, and wants the rest in it, each with its own terms.
func TestTableIsThatOfTheModel(t *testing.T) {
	t.Parallel()
	const runs = 3 * near
	rnd := rand.New(rand.NewPCG(3, 4))
	var tab table
	model := map[place]row{}
	for round := range 60 {
		for range []int{1, few, 10 * few, 1000}[round%4] {
			n := rnd.IntN(runs)
			id, _ := keyOf(fmt.Sprintf("r%05d", n))
			r := tab.row(place{int64(n / 2), id}, n%2 == 0, facets{task: fmt.Sprint(n % 7), terms: make([]uint32, rnd.IntN(30))})
			for i := range r.terms {
				r.terms[i] = rnd.Uint32()
			}
			if r.gone = rnd.IntN(3) == 0; r.gone {
				delete(model, r.place)
			} else {
				model[r.place] = r
			}
			tab.put(r)
		}
		tab.settle()
		compareTable(t, &tab, model)
	}
}

func compareTable(t *testing.T, tab *table, model map[place]row) {
	t.Helper()
	if len(tab.places) != len(model) || !slices.IsSortedFunc(tab.places, place.compare) {
		t.Fatalf("%d rows in order %v, want %d in order", len(tab.places), slices.IsSortedFunc(tab.places, place.compare), len(model))
	}
	used := 0
	for i, p := range tab.places {
		want, s := model[p], tab.spans[i]
		if tab.task[i] != want.task || tab.kinds[i] != want.kind || tab.masks[i] != maskOf(want.terms) || !slices.Equal(tab.terms[s.from:s.to], want.terms) {
			t.Fatalf("row %d of run %s is not what was put there last", i, p.id)
		}
		used += len(want.terms)
	}
	if used+tab.unused != len(tab.terms) || tab.unused > near+len(tab.terms)/2+30 {
		t.Fatalf("of %d terms %d are used and %d are not", len(tab.terms), used, tab.unused)
	}
}
