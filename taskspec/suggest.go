package taskspec

import "fmt"

// maxSuggest is how many fields of a step are looked at for a misspelt one.
const maxSuggest = 64

// didYouMean returns ` (did you mean "x"?)` for the candidate that is spelt most like s, or "".
func didYouMean(s string, candidates []string) string {
	best := nearest(s, candidates)
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// nearest returns the candidate that is spelt most like s, or "". It does not look through very many.
func nearest(s string, candidates []string) string {
	if len(candidates) > maxSteps {
		return ""
	}
	best, bestDist := "", 1+len(s)/3 // short words have no lookalikes
	for _, c := range candidates {
		if d := distance(s, c, bestDist); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// distance returns how many letters must be changed, added, dropped or swapped to make b from a, case
// not counting, or limit if it is no less.
func distance(a, b string, limit int) int {
	if len(a) > 64 || len(b) > 64 || len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	var rows [3][65]int
	before, prev, cur := &rows[0], &rows[1], &rows[2]
	for j := range len(b) + 1 {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if lower(a[i-1]) == lower(b[j-1]) {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && lower(a[i-1]) == lower(b[j-2]) && lower(a[i-2]) == lower(b[j-1]) {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return min(prev[len(b)], limit)
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}
