from paddlex_feat.runtime.opencv import require_opencv

require_opencv()  # before any module of this package imports cv2 and looks for what a broken one lacks
